"""A shop that ships its orders as tasks: order and task are created in one transaction, and the customer can watch.

uvicorn --app-dir examples fastapi_app:app     every process of it is a node, which takes its share of the tasks
python examples/fastapi_app.py                 at work, without a server
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID, uuid4

import anyio
import httpx
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pyasync import Finished, Registry, Report, State, Task, aio

registry = Registry()
STOCK = 5


@registry.task("order.ship", retry=[1, 10, 60])
async def ship(run: aio.Run[dict[str, Any]]) -> AsyncIterator[Report]:
    """Ship the pieces of an order, one after the other."""
    pieces = run.arguments["pieces"]
    for piece in range(run.context.get("shipped", 0) + 1, pieces + 1):
        await anyio.sleep(0.05)  # the carrier
        yield Report({"shipped": piece}, progress=piece / pieces, message=f"shipped piece {piece}")
    yield Finished(f"{pieces} pieces are on their way")


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "shop_order"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    customer: Mapped[str]
    pieces: Mapped[int]
    task: Mapped[UUID]


class NewOrder(BaseModel):
    pieces: int


class Progress(BaseModel):
    state: State
    progress: float | None
    message: str | None
    result: Any

    @classmethod
    def of(cls, task: Task) -> Progress:
        return cls(state=task.state, progress=task.progress, message=task.message, result=task.result)


Customer = Annotated[str, Header(alias="X-Customer")]


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    async with request.app.state.sessions() as session:
        yield session


async def get_order(
    order_id: UUID, customer: Customer, session: Annotated[AsyncSession, Depends(get_session)]
) -> Order:
    order = await session.get(Order, order_id)
    if order is None or order.customer != customer:
        raise HTTPException(404, "no such order")
    return order


def create_app(database: str) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = create_async_engine(database)
        app.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        await aio.init(engine, registry=registry, migrate="auto")
        try:
            yield
        finally:
            await aio.stop()  # hands over what still runs
            await engine.dispose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/orders", status_code=201)
    async def place(
        new: NewOrder, customer: Customer, session: Annotated[AsyncSession, Depends(get_session)]
    ) -> dict[str, UUID]:
        order = Order(id=uuid4(), customer=customer, pieces=new.pieces)
        order.task = await aio.create_task(
            "order.ship", {"order": str(order.id), "pieces": new.pieces}, user=customer, connection=session
        )
        session.add(order)
        if new.pieces > STOCK:
            raise HTTPException(409, "out of stock")  # the session rolls back: there is neither an order nor a task
        await session.commit()  # both, or neither
        return {"order": order.id}

    @app.get("/orders/{order_id}")
    async def show(order: Annotated[Order, Depends(get_order)]) -> Progress:
        return Progress.of(await aio.get_task(order.task, user=order.customer))

    @app.get("/orders/{order_id}/events")
    async def watch(order: Annotated[Order, Depends(get_order)]) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            async for task in aio.watch_task(order.task, user=order.customer):
                yield f"data: {Progress.of(task).model_dump_json()}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


app = create_app(os.environ.get("SHOP_DATABASE", "sqlite+aiosqlite:///shop.db"))


async def main(database: str) -> None:
    app = create_app(database)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://shop", headers={"X-Customer": "ada"}) as client,
    ):
        order = (await client.post("/orders", json={"pieces": 3})).json()["order"]
        print((await client.get(f"/orders/{order}/events")).text)
        print((await client.get(f"/orders/{order}")).json())
        print((await client.post("/orders", json={"pieces": 99})).json())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        anyio.run(main, f"sqlite+aiosqlite:///{folder}/shop.db")
