"""Pay the wages: each payment and the checkpoint that says so are one transaction, so nobody is paid twice.

`run.commit(report, work)` calls `work(connection)`, writes the report last, and commits both or neither: exactly once,
in the same database. Nor can a node pay that was declared lost while it was merely slow: its report is refused.

python examples/transfer.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, create_engine, insert, select, update

import pyasync
from pyasync import Finished, Registry, Report, Run

metadata = MetaData()
account = Table("account", metadata, Column("owner", String(50), primary_key=True), Column("balance", Integer))

registry = Registry()


@registry.task("wages")
def pay_wages(run: Run[dict[str, Any]]) -> Iterator[Report]:
    """Pay `wage` from account `payer` to each of `payees`, in order."""
    payer, payees, wage = (run.arguments[name] for name in ("payer", "payees", "wage"))
    for paid in range(run.context.get("paid", 0), len(payees)):
        if run.stop.is_set():
            return  # `commit` does not stop a task, as `yield` does
        payee = payees[paid]
        report = Report({"paid": paid + 1}, progress=(paid + 1) / len(payees), message=f"paid {payee}")
        run.commit(report, lambda connection, payee=payee: transfer(connection, payer, payee, wage))
    yield Finished(len(payees))


def transfer(connection: Connection, payer: str, payee: str, amount: int) -> None:
    for owner, change in ((payer, -amount), (payee, amount)):
        connection.execute(update(account).where(account.c.owner == owner).values(balance=account.c.balance + change))


def open_accounts(database: str, balances: dict[str, int]) -> None:
    engine = create_engine(database)
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(account), [{"owner": owner, "balance": sum} for owner, sum in balances.items()])
    engine.dispose()


def balances(database: str) -> dict[str, int]:
    engine = create_engine(database)
    with engine.connect() as connection:
        found = {row.owner: row.balance for row in connection.execute(select(account).order_by(account.c.owner))}
    engine.dispose()
    return found


def main(database: str) -> None:
    open_accounts(database, {"firm": 1000, "ada": 0, "grace": 0, "edsger": 0})
    pyasync.init(database, registry=registry)
    id = pyasync.create_task("wages", {"payer": "firm", "payees": ["ada", "grace", "edsger"], "wage": 300})
    print("paid:", pyasync.result(id), "people")
    pyasync.stop()
    print("balances:", balances(database))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(f"sqlite:///{folder}/transfer.db")
