"""Column types that hold the same value on every database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import DateTime, Dialect, Double, LargeBinary, String, Text, Uuid
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeDecorator, TypeEngine

_MYSQL = ("mysql", "mariadb")

Contents = Text().with_variant(mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), *_MYSQL)
"""Text of any length: strict JSON (the databases disagree on what their JSON types take), or prose."""

Word = String(12).with_variant(mysql.VARCHAR(12, charset="ascii", collation="ascii_bin"), *_MYSQL)
"""A value of one of our enums."""

Real: Double[Any] = Double()
"""Seconds, or a fraction."""


class Id(TypeDecorator[UUID]):
    """A UUID: native on PostgreSQL, 16 bytes elsewhere, since those sort by creation on every version of MariaDB."""

    impl = LargeBinary
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column type."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(Uuid(as_uuid=True))
        if dialect.name in _MYSQL:
            return dialect.type_descriptor(mysql.BINARY(16))
        return dialect.type_descriptor(LargeBinary(16))

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        """Save a call for each value where the driver brings it as we want it."""
        if dialect.name == "postgresql":
            return self.load_dialect_impl(dialect).result_processor(dialect, coltype)
        return super().result_processor(dialect, coltype)

    def process_bind_param(self, value: UUID | None, dialect: Dialect) -> Any:
        """Hand a UUID to the driver."""
        return value if value is None or dialect.name == "postgresql" else value.bytes

    def process_result_value(self, value: Any, dialect: Dialect) -> UUID | None:
        """Take a UUID from the driver."""
        return value if value is None or isinstance(value, UUID) else UUID(bytes=bytes(value))


class Name(TypeDecorator[str]):
    """At most 255 bytes compared byte for byte: no case folding, no padding, the same order everywhere."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column type."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(Text(collation="C"))
        if dialect.name in _MYSQL:
            return dialect.type_descriptor(mysql.VARBINARY(255))
        return dialect.type_descriptor(Text())

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        """Save a call for each value where the driver brings it as we want it."""
        return super().result_processor(dialect, coltype) if dialect.name in _MYSQL else None

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        """Hand a name to the driver."""
        return value.encode() if value is not None and dialect.name in _MYSQL else value

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        """Take a name from the driver."""
        return value.decode() if isinstance(value, bytes) else value


class Utc(TypeDecorator[datetime]):
    """A moment, to the microsecond, always aware and in UTC. SQLite keeps it as ISO text, which sorts."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column type."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(DateTime(timezone=True))
        if dialect.name in _MYSQL:
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Hand a moment to the driver."""
        if value is None:
            return None
        moment = value.astimezone(UTC)
        if dialect.name == "postgresql":
            return moment
        naive = moment.replace(tzinfo=None)
        return naive if dialect.name in _MYSQL else naive.isoformat(sep=" ", timespec="microseconds")

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Take a moment from the driver."""
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        return None if value is None else _in_utc(value)


def _in_utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
