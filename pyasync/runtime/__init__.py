"""A node: threads and one event loop, which speak to the store only.

The protocol, for those who change it
=====================================

*Lease.* The keeper raises the counter in the node's row every third of a lease, on a connection and in a thread of its
own. The node trusts its lease until a lease, less a margin, after it *sent* the last beat that was stored; after that
it claims nothing. Nothing is ever voided by a lease's end: it only permits a takeover.

*Claim.* The committer gives free slots to claimable tasks in one transaction, which draws a random fence and stores it
on the tasks. (task, fence, seq) is the right to write; whoever holds an older fence is refused.

*Report.* A run hands each report to the committer and goes on when it is stored. The committer stores all that are
waiting, and claims for the slots that become free, in one transaction. It never waits for a row's lock: a locked row's
report is sent again.

*Doubt.* A write that changed no row, or whose reply was lost, is read back: stored, send again, the database went back
in time (the run begins again from the row), or lost (the run is told, and not resumed).

*Stop.* Pause, cancel, delete, shutdown, timeout and lost are one mechanism: the run's `stop` is set; it ends at its
next report. What has not ended after `stop_grace` is let go of with a new fence, and cancelled.

*Takeover.* Every sweeper observes the others' counters by its own monotonic clock, declares a node lost by a
compare-and-set on the counter that it saw standing still, and applies `sys_pause` to its tasks.

*Reconciliation.* With each beat comes back what the database says this node runs. What memory does not know for two
beats is let go of; what the database does not know for two beats is told "lost".

*Shutdown.* Claims stop; runs are told; what does not end is let go of; the committer stores the last writes; the keeper
removes the node's row and closes its session last, so that nobody has to wait for the lease.

Services do not know each other: `node` wires them by callbacks. Each is a thread around `tick`.
"""
