from tests.store.test_writes import *
from sqlalchemy import select
@pytest.mark.databases("mariadb")
def test_dbg(database, rows):
    for order in ([0,1,2,3],[1,0,2,3],[0,2,1,3],[0,2,3,1],[1,2,3,0],[3,2,1,0]):
        cl=[rows.claimed() for _ in range(4)]
        lockd=cl[1]
        with rows.locked(lockd.task_id):
            w=store(database, *(Write(cl[i],context="1") for i in order))
        print(order, [(i, x.fate.value) for i,x in zip(order,w)], [rows.get(c.task_id).seq for c in cl])
    for order in ([0,1,2,3],[1,0,2,3],[0,2,1,3],[0,2,3,1],[1,2,3,0],[3,2,1,0]):
        cl=[rows.claimed() for _ in range(4)]
        with rows.locked(cl[1].task_id, cl[2].task_id):
            w=store(database, *(Write(cl[i],context="1") for i in order))
        print(order, [(i, x.fate.value) for i,x in zip(order,w)], [rows.get(c.task_id).seq for c in cl])
    cl=[rows.claimed() for _ in range(4)]
    with rows.locked(cl[1].task_id):
      with database.transaction() as tx:
        with recorded(database.engine) as st:
            writes.write(tx, [Write(cl[i],context="1") for i in (0,1,2,3)])
        sql,p=st[0]
        tx.connection.rollback()
      with database.transaction() as tx:
        for r in tx.connection.exec_driver_sql("explain "+sql,p): print(r)
        print(tx.connection.exec_driver_sql(sql,p).all())
        free=tx.connection.exec_driver_sql("select @@version, @@tx_isolation, @@optimizer_switch").all(); print(free)
for n in list(globals()):
    if n.startswith("test_") and n!="test_dbg": del globals()[n]
