"""Run the revisions on what `pyasync.store.schema` has put into the configuration: there is no ini file."""

from __future__ import annotations

from alembic import context
from sqlalchemy import inspect
from sqlalchemy.schema import CreateSchema


def create_schema(name: str) -> None:
    # Looked up first, since IF NOT EXISTS asks for the right to create even where there is nothing to create.
    if context.is_offline_mode() or not inspect(context.get_bind()).has_schema(name):
        context.execute(CreateSchema(name, if_not_exists=True))


options = context.config.attributes
context.configure(
    connection=options.get("connection"),
    dialect_name=options.get("dialect"),
    dialect_opts={"paramstyle": "named"},
    literal_binds=context.is_offline_mode(),
    version_table="pyasync_version",
    version_table_schema=options["schema"],
)
with context.begin_transaction():
    if options["schema"]:
        create_schema(options["schema"])
    context.run_migrations()
