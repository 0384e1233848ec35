import pytest
from sqlalchemy import text
from tests.store.rows import *
@pytest.mark.databases("mariadb")
def test_x(client, rows, database):
    rows.put_many(5000, user_name="bob")
    for n in range(50): rows.put("pending, run", created_at=LONG_AGO.replace(year=1990+ n))
    with database.transaction() as tx: tx.execute(text("analyze table pyasync_task"))
    with recorded(client._database.engine) as st:
        client.pause_tasks(user="alice")
    sql,p=[x for x in st if "FOR UPDATE" in x[0]][0]
    with database.transaction() as tx:
        for r in tx.connection.exec_driver_sql("explain "+sql,p): print(r)
    with recorded(client._database.engine) as st:
        client.run_tasks(user="alice", ids=rows.column("id")[-30:])
    sql,p=[x for x in st if "FOR UPDATE" in x[0]][0]
    with database.transaction() as tx:
        for r in tx.connection.exec_driver_sql("explain "+sql,p): print(r)
