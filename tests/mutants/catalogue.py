"""The guards of the engine, each with the source text that takes it out, and the quick tests that must notice.

To add one: give `old` exactly as it stands once in the file, and tests that fail on it within seconds. `database` is
the kind that they run on: SQLite where it can tell, a server where its own SQL is at stake, None for pure tests.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A guard that is taken out of a file, by replacing `old` with `new`; `about` says what the engine then does."""

    name: str
    about: str
    file: str
    old: str
    new: str
    checks: tuple[str, ...]
    database: str | None

    def patched(self, text: str) -> str:
        """Return the file's text without the guard. Raises ValueError unless `old` is there exactly once."""
        if (found := text.count(self.old)) != 1:
            raise ValueError(
                f"{self.name}: {self.file} has {found} times what is to be replaced, not once:\n{self.old}"
            )
        return text.replace(self.old, self.new)


def mutant(name: str, about: str, patch: tuple[str, str, str], *checks: str, database: str | None = "sqlite") -> Mutant:
    """Make a mutant. A patch is (file below pyasync/, old, new), a check is (file below tests/)::(name of a test)."""
    file, old, new = patch
    return Mutant(name, about, f"pyasync/{file}", old, new, tuple(f"tests/{check}" for check in checks), database)


WRITES = "store/writes.py"
TASKS = "store/tasks.py"
CLAIMS = "store/claims.py"
NODES = "store/nodes.py"
DIALECTS = "store/dialects.py"
DATABASE = "store/database.py"
COMMITTER = "runtime/committer.py"
COMMITS = "runtime/commits.py"
EXECUTOR = "runtime/executor.py"
KEEPER = "runtime/keeper.py"
SWEEPER = "runtime/sweeper.py"
NODE = "runtime/node.py"
RECONCILER = "runtime/reconciler.py"

BEATING = "raised = update(tx.t.node).where(column.id == node_id, column.lost.is_(False))"
MARKING = 'values |= {"stage": target.stage.value, "mark": target.mark.value}'
ON_LOST = "def _on_lost(self, was: UUID, now: UUID) -> None:\n"
EARLY_COMMIT = """\
            tx.connection.connection.driver_connection.commit()
            written = writes.write(tx,"""
WALL_CLOCK = """if self._silent(peer)]

    def _silent(self, peer: Peer) -> bool:
        infos = {info.id: info.beat_at for info in self._database.single(nodes.infos)}
        return time.time() - infos[peer.id].timestamp() > peer.lease"""

GUARDED_WRITES = (
    mutant(
        "guard-without-fence",
        "a write counts for whoever has the right seq",
        (WRITES, "task.fence = v.fence and task.seq = v.seq", "task.seq = v.seq"),
        "store/test_writes.py::test_a_zombies_report_after_a_takeover_is_refused",
    ),
    mutant(
        "guard-without-seq",
        "a write that is sent twice counts twice",
        (WRITES, "task.fence = v.fence and task.seq = v.seq", "task.fence = v.fence"),
        "store/test_writes.py::test_a_report_that_is_sent_twice_is_stored_once",
    ),
    mutant(
        "guard-without-stage",
        "a write counts after the end of the run",
        (WRITES, ' and task.stage in ({_quoted(stage.value for stage in OWNED)})"', '"'),
        "store/test_writes.py::test_nothing_counts_after_the_end_of_a_run",
    ),
    mutant(
        "zero-rows-ignored",
        "a write that changed no row is taken for stored",
        (
            WRITES,
            "_read_back(tx, doubtful) if doubtful else done",
            "{each.claim.task_id: Written(Fate.STORED) for each in doubtful}",
        ),
        "store/test_writes.py::test_a_zombies_report_after_a_takeover_is_refused",
    ),
    mutant(
        "zero-rows-mean-lost",
        "nothing is read back: a write whose reply was lost costs the claim",
        (
            WRITES,
            "_read_back(tx, doubtful) if doubtful else done",
            "{each.claim.task_id: Written(Fate.LOST) for each in doubtful}",
        ),
        "store/test_writes.py::test_a_report_that_is_sent_twice_is_stored_once",
        "runtime/test_guards.py::test_report_whose_reply_was_lost_counts_once_and_its_run_goes_on",
    ),
    mutant(
        "going-back-means-lost",
        "a database that went back in time costs the claim",
        (WRITES, "Written(Fate.BEHIND if row.seq < claim.seq else Fate.LOST,", "Written(Fate.LOST,"),
        "runtime/test_back_in_time.py::test_run_whose_last_report_was_lost_begins_again_from_the_row",
    ),
    mutant(
        "going-back-unnoticed",
        "a run goes on though the database went back in time",
        (
            EXECUTOR,
            "if answer.fate is Fate.BEHIND:\n        raise _Behind",
            "if answer.fate is Fate.BEHIND:\n        return",
        ),
        "runtime/test_back_in_time.py::test_run_whose_last_report_was_lost_begins_again_from_the_row",
    ),
    mutant(
        "remembered-mark",
        "the status after a run is computed from the mark at its claim",
        (
            WRITES,
            "and was.mark = '{status.mark.value}')",
            "and ('run' = '{status.mark.value}' or was.stage <> 'running'))",
        ),
        "store/test_writes.py::test_an_end_goes_by_the_mark_that_the_row_has_when_it_is_stored",
    ),
    mutant(
        "removal-goes-by-no-mark",
        "a run that removes its row skips the clean-up that a user asked for",
        (WRITES, "(task.stage = '{Stage.DELETING.value}' or task.mark <> '{Mark.DELETE.value}')", "1 = 1"),
        "store/test_writes.py::test_a_removal_removes_the_row_unless_its_clean_up_is_to_run",
    ),
    mutant(
        "forced-release-keeps-fence",
        "a run that was let go of may still be taken for the owner",
        (WRITES, '"coalesce(v.new_fence, task.fence)"', '"task.fence"'),
        "store/test_writes.py::test_a_run_is_let_go_of_after_whatever_it_wrote_meanwhile",
        "store/test_writes.py::test_letting_go_twice_is_letting_go_once",
    ),
    mutant(
        "forced-release-with-remembered-seq",
        "a run that reports while it is let go of keeps its task",
        (WRITES, "ending, claim=claim.after(seq))", "ending, claim=claim)"),
        "store/test_writes.py::test_a_run_is_let_go_of_after_whatever_it_wrote_meanwhile",
    ),
    mutant(
        "losses-never-forgotten",
        "a task that makes progress between losses is taken for what kills its nodes",
        (WRITES, '"seq": "task.seq + 1", "losses": "0", "note"', '"seq": "task.seq + 1", "note"'),
        "store/test_takeover.py::test_a_report_in_between_begins_the_count_anew",
    ),
)

CLAIMING = (
    mutant(
        "counter-for-a-fence",
        "fences are counted, so that a failover or another process hands one out again",
        (
            "ids.py",
            "    return uuid4()\n",
            "    return UUID(int=next(_counted))\n\n\n_counted = iter(range(1, 2**62))\n",
        ),
        "store/test_guards.py::test_a_claim_that_a_failover_forgot_does_not_stand_beside_the_next_one",
    ),
    mutant(
        "claim-without-status",
        "a claim takes whatever it has found in the queue",
        (CLAIMS, ".where(column.queue.is_not(None), *claimable)", ".where(column.queue.is_not(None))"),
        "store/test_guards.py::test_a_task_that_is_in_a_queue_by_mistake_is_not_claimed",
    ),
    mutant(
        "claim-without-lock",
        "two nodes choose the same task",
        (CLAIMS, ".with_for_update(skip_locked=True, key_share=True)", ""),
        "store/test_claims.py::test_a_claim_that_is_not_committed_yet_is_left_out_by_others",
        database="postgresql",
    ),
    mutant(
        "claim-waits-for-locks",
        "a task that somebody has locked holds up all claims",
        (CLAIMS, ".with_for_update(skip_locked=True, key_share=True)", ".with_for_update(key_share=True)"),
        "store/test_claims.py::test_a_locked_task_is_left_out_without_waiting",
        database="postgresql",
    ),
    mutant(
        "begin-without-lock",
        "two nodes on SQLite read the queue before either writes",
        (DIALECTS, '"begin immediate" if write else "begin"', '"begin"'),
        "store/test_claims.py::test_a_claim_that_is_not_committed_yet_makes_the_next_one_wait",
    ),
    mutant(
        "lost-claims-forgotten",
        "what was claimed by a transaction whose reply was lost waits for reconciliation",
        (COMMITTER, "        self._doubtful.append(done.fence)  # until the commit is known\n", ""),
        "runtime/test_guards.py::test_claim_whose_reply_was_lost_is_let_go_of_at_once",
    ),
    mutant(
        "claims-without-a-lease",
        "a node that cannot renew its lease goes on claiming",
        (NODE, "return self._keeper.trusted and self._pulse.alive()", "return self._pulse.alive()"),
        "runtime/test_guards.py::test_node_that_cannot_renew_its_lease_claims_nothing",
    ),
    mutant(
        "claims-with-a-blocked-loop",
        "a node whose loop is blocked hoards tasks",
        (NODE, "return self._keeper.trusted and self._pulse.alive()", "return self._keeper.trusted"),
        "runtime/test_hosts.py::test_blocked_loop_loses_no_task_and_claims_nothing_meanwhile",
    ),
    mutant(
        "no-probation",
        "a task that lost its nodes again and again is claimed like any other",
        ("domain/queues.py", "PROBATION_LOSSES = 2", "PROBATION_LOSSES = 1_000"),
        "store/test_takeover.py::test_a_task_that_loses_its_nodes_goes_on_probation_and_then_fails",
    ),
    mutant(
        "probation-for-many",
        "a node runs several suspects at once, and blames all when it dies",
        ("runtime/claimer.py", "limit=min(free, 1) if queue is Queue.PROBATION else free", "limit=free"),
        "runtime/test_guards.py::test_node_runs_one_suspect_at_a_time",
    ),
    mutant(
        "probation-without-memory",
        "a node claims the next suspect while one runs",
        ("runtime/claimer.py", "if self._runs.probing else", "if False else"),
        "runtime/test_guards.py::test_node_runs_one_suspect_at_a_time",
    ),
)

LOCKS = (
    mutant(
        "writes-wait-for-locks-postgresql",
        "one row that a caller has locked holds up the reports of all",
        (DIALECTS, "for {lock} of task skip locked) free", "for {lock} of task) free"),
        "store/test_writes.py::test_a_locked_row_does_not_hold_up_the_others",
        database="postgresql",
    ),
    mutant(
        "writes-wait-for-locks-mariadb",
        "one row that a caller has locked holds up the reports of all",
        (DIALECTS, ' for update skip locked"\n', ' for update"\n'),
        "store/test_writes.py::test_a_locked_row_does_not_hold_up_the_others",
        database="mariadb",
    ),
)

TAKEOVER = (
    mutant(
        "takeover-keeps-fence",
        "a task that was taken over still has the fence of the lost node",
        (CLAIMS, '        "fence": fence,\n        "losses": losses,', '        "losses": losses,'),
        "store/test_takeover.py::test_a_takeover_does_what_the_node_would_have_done",
    ),
    mutant(
        "declaration-without-counter",
        "a node that has beaten meanwhile is declared lost",
        (NODES, "column.counter == peer.counter, same_session", "same_session"),
        "store/test_takeover.py::test_a_node_is_declared_lost_only_if_nothing_of_it_has_changed",
    ),
    mutant(
        "declaration-without-session",
        "a node that has come back under a new session is declared lost",
        (NODES, "column.counter == peer.counter, same_session", "column.counter == peer.counter"),
        "store/test_takeover.py::test_a_node_is_declared_lost_only_if_nothing_of_it_has_changed",
    ),
    mutant(
        "lost-node-beats",
        "a node that was declared lost goes on as if nothing had happened",
        (NODES, BEATING, BEATING.replace(", column.lost.is_(False)", "")),
        "store/test_takeover.py::test_a_node_that_was_declared_lost_cannot_beat",
    ),
    mutant(
        "keeper-ignores-zero-rows",
        "a node does not notice that its beat changed no row",
        (KEEPER, "if not nodes.beat(tx, self.node_id, beat):", "if nodes.beat(tx, self.node_id, beat) is None:"),
        "runtime/test_guards.py::test_node_that_was_declared_lost_tells_its_runs_and_joins_again",
    ),
    mutant(
        "lost-node-keeps-its-runs",
        "a node that was declared lost joins again and lets its old runs go on",
        (NODE, ON_LOST, ON_LOST + "        return\n"),
        "runtime/test_guards.py::test_node_that_was_declared_lost_tells_its_runs_and_joins_again",
    ),
    mutant(
        "wall-clock-lease",
        "a node is lost when its last beat is old by the wall clock",
        (SWEEPER, "if self._observations[peer.id].lost(peer.lease)]", WALL_CLOCK),
        "test_ancestor_flaws.py::test_g04_no_wall_clock_makes_a_dead_node_alive_or_a_living_one_dead",
    ),
    mutant(
        "lease-from-the-reply",
        "a node trusts its lease for longer than others do, by as long as its beat took",
        (KEEPER, "self._lease.trusted_until(sent_at)", "self._lease.trusted_until(boot_clock())"),
        "runtime/test_guards.py::test_node_trusts_its_lease_from_before_the_beat_was_sent",
    ),
    mutant(
        "observer-that-paused",
        "an observer that was paused takes its own silence for the other's",
        ("domain/lease.py", " or not 0 <= gap <= _LONGEST_GAP * lease", ""),
        "domain/test_lease.py::test_observer_that_paused_for_more_than_half_a_lease_starts_over",
        database=None,
    ),
    mutant(
        "two-reads-are-enough",
        "one slow beat looks like none",
        ("domain/lease.py", "_READS_TO_JUDGE = 3", "_READS_TO_JUDGE = 2"),
        "domain/test_lease.py::test_node_is_not_lost_on_fewer_than_three_reads",
        database=None,
    ),
    mutant(
        "suspicion-after-a-pause",
        "an observer that was paused takes the time for time in which it saw the lock free",
        ("domain/suspicion.py", " or was.counter != counter or paused:", " or was.counter != counter:"),
        "domain/test_suspicion.py::test_pause_of_the_observer_begins_the_second_anew",
        database=None,
    ),
    mutant(
        "suspicion-after-a-reconnect",
        "after the database's restart, in which all locks went, the others are declared lost",
        ("domain/suspicion.py", "self._sights if look.session == self._session else {}", "self._sights"),
        "domain/test_suspicion.py::test_reconnect_between_the_two_probes_drops_the_suspicion",
        database=None,
    ),
    mutant(
        "suspicion-without-having-seen",
        "a lock that was never seen held counts as lost",
        (
            "domain/suspicion.py",
            "        return None  # free, but never seen held",
            "        return Sight(counter, key, look.answered)  # free, but never seen held",
        ),
        "domain/test_suspicion.py::test_lock_that_was_never_seen_held_proves_nothing",
        database=None,
    ),
    mutant(
        "lost-row-removed-too-soon",
        "a lost node's row goes while tasks still name it",
        (NODES, "column.lost.is_(True), ~named)", "column.lost.is_(True))"),
        "store/test_takeover.py::test_a_lost_nodes_row_is_removed_only_when_no_task_names_it",
    ),
)

RUNS = (
    mutant(
        "no-doomed-rule",
        "what `work` wrote before an error that it swallowed is committed",
        (DATABASE, "failures.append(context.original_exception)", "pass"),
        "runtime/test_commit.py::test_error_that_work_swallows_dooms_the_transaction",
    ),
    mutant(
        "commit-before-the-guard",
        "what `work` wrote is committed before its report is known to stand",
        (COMMITS, "            written = writes.write(tx,", EARLY_COMMIT),
        "runtime/test_commit.py::test_commit_after_a_takeover_leaves_nothing",
    ),
    mutant(
        "commit-found-by-reading-counts",
        "the effects of a commit that came through late are there twice",
        (COMMITS, "if written.fate is not Fate.STORED or written.read:", "if written.fate is not Fate.STORED:"),
        "runtime/test_commit.py::test_commit_that_comes_through_late_while_work_is_repeated_counts_once",
        database="postgresql",
    ),
    mutant(
        "yield-does-not-wait",
        "a task goes on before its checkpoint is stored",
        (EXECUTOR, "        await stored.wait()\n", "        return Written(Fate.STORED)\n"),
        "test_ancestor_flaws.py::test_g07_a_task_goes_on_only_when_its_checkpoint_is_stored",
    ),
    mutant(
        "lost-runs-are-not-told",
        "a run whose write was refused does not learn why it ends",
        (COMMITTER, 'self._stop_run(execution, "lost")', "pass"),
        "test_ancestor_flaws.py::test_g02_a_run_whose_task_was_given_to_another_node_is_told_and_not_resumed",
    ),
    mutant(
        "finishes-without-what-was-lost",
        "a task finishes in a database that went back in time, without the report that this lost",
        (COMMITTER, "if write.event is Event.TASK_FINISHED:", "if False:"),
        "runtime/test_back_in_time.py::test_task_does_not_finish_without_the_report_that_was_lost",
    ),
    mutant(
        "rows-without-a-run-stay",
        "a task that the database says this node runs, and does not, waits for ever",
        (RECONCILER, "if beats >= PATIENCE], vanished", "if False], vanished"),
        "test_ancestor_flaws.py::test_g14_a_claim_that_no_run_came_of_is_let_go_of",
    ),
    mutant(
        "runs-without-a-row-go-on",
        "a run that the database does not know of is not told before it writes",
        (RECONCILER, "return execution.misses >= PATIENCE", "return False"),
        "runtime/test_guards.py::test_run_that_no_row_belongs_to_is_told_with_the_beats",
    ),
    mutant(
        "old-and-new-run-in-one-group",
        "a run whose task was taken over is told that its report is stored, since that of the next run here was",
        (COMMITTER, "write.claim.task_id in tasks or ", ""),
        "runtime/test_guards.py::test_report_of_an_old_run_is_refused_beside_one_of_the_new_run_on_the_same_node",
    ),
    mutant(
        "stored-once-or-never",
        "a group that failed for a passing reason is dropped",
        (COMMITTER, "            self._items.extendleft(reversed(group))\n", "            pass\n"),
        "test_ancestor_flaws.py::test_g07_a_task_goes_on_only_when_its_checkpoint_is_stored",
    ),
    mutant(
        "runs-share-a-context",
        "what one run sets in its context variables is seen by the next one",
        (EXECUTOR, " and copy_context() == clean", ""),
        "runtime/test_one_loop.py::test_what_a_run_sets_in_its_context_is_unset_in_the_next",
    ),
    mutant(
        "stop-is-not-at-the-yield",
        "a run that was asked to stop is resumed after its report",
        (EXECUTOR, "if run.stop.is_set():", "if False:"),
        "runtime/test_stop.py::test_stop_closes_the_generator_at_its_yield",
    ),
)

VERBS = (
    mutant(
        "verb-changes-fence",
        "a user's verb makes the node's next report a zombie's",
        (TASKS, MARKING, MARKING.replace("}", ', "fence": None}')),
        "store/test_verbs.py::test_a_verb_writes_nothing_of_a_running_task_but_its_mark",
    ),
    mutant(
        "verb-changes-seq",
        "a user's verb makes the node's next report an old one",
        (TASKS, MARKING, MARKING.replace("}", ', "seq": column.seq + 1}')),
        "store/test_verbs.py::test_a_verb_writes_nothing_of_a_running_task_but_its_mark",
    ),
    mutant(
        "verb-for-any-user",
        "a user's verb changes anybody's task",
        (TASKS, "return [] if user is None else [tx.t.task.c.user_name == user]", "return []"),
        "test_ancestor_flaws.py::test_g30_a_task_of_another_user_can_be_neither_seen_nor_changed",
    ),
)

MUTANTS = (*GUARDED_WRITES, *CLAIMING, *LOCKS, *TAKEOVER, *RUNS, *VERBS)
