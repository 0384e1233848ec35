"""The protocol as a small program, of which every interleaving is tried: a specification that runs.

One task, two or three nodes. Each report stores a checkpoint and one effect of the user's in the same transaction. At
any moment a lease may be taken for expired, a connection may drop while a write is under way (the server may still
apply it, later or never), users change their minds, a row may be deleted, and an asynchronous failover may lose the
last committed transaction.

Read `protocol` (the guards, each of which can be taken out), `world` (what there is), `steps` (what may happen next),
`invariants` (what must be true of that), `mutants` (what each guard is good for). `python -m tests.model` tries the
protocol and all mutants; `python -m tests.model MUTANT` prints the shortest way to what it breaks.

The table of states and the read-back are the product's own. What the model leaves out: time (when a lease is taken for
expired, and how a lost node is found; here it may happen at any moment), the two beats that reconciliation waits, which
of many tasks is claimed, retries and their delays, counting losses, probation and the crash loop. A node that dies is
one that takes no further step. A row's lock is not modelled: a write is guarded and applied at one moment, and "sent"
until then.
"""
