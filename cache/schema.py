"""The tables, as SQLAlchemy sees them. migrations.py makes them; a test holds the two equal.

No STRICT tables (SQLite before 3.37 could not open the file) and no check on the words of `state` (a new
state would mean rebuilding the table): values are checked in rows.py, on the way in and on the way out.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

METADATA = MetaData()

# The answers, in clear, so that a row explains itself and a lookup is one probe.
TUNED = Table(
    "tuned",
    METADATA,
    Column("key", LargeBinary(16), primary_key=True),
    Column("compiler", LargeBinary(8), primary_key=True),
    Column("arch", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("kernel", Text, nullable=False),
    Column("kernel_digest", Text, nullable=False),
    Column("signature", Text, nullable=False),
    Column("dtype", Text, nullable=False),
    Column("batch", BigInteger, nullable=False),
    Column("compute_units", Integer),
    Column("config", Text),
    Column("label", Integer, nullable=False),
    Column("us_median", Double),
    Column("us_p10", Double),
    Column("us_p90", Double),
    Column("samples", BigInteger, nullable=False),
    Column("us_default", Double),
    Column("score", Double),
    Column("score_default", Double),
    Column("model_version", Text, nullable=False),
    Column("shortlist", Text, nullable=False),
    Column("facts", Text),
    Column("env", Integer, ForeignKey("env.id"), nullable=False),
    Column("source", Integer, ForeignKey("source.id"), nullable=False),
    Column("ts_ms", BigInteger, nullable=False),
    Column("row_digest", LargeBinary(16), nullable=False),
    CheckConstraint("label IN (0, 1, 2)", name="label_known"),
    sqlite_with_rowid=False,
)
# For the other-bucket and other-device answers and for `show`; a shipped file may leave it out.
TUNED_BY_SITE = Index("tuned_by_site", TUNED.c.kernel, TUNED.c.signature, TUNED.c.dtype, TUNED.c.arch, TUNED.c.batch)

ENV = Table(
    "env",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("digest", LargeBinary(16), nullable=False, unique=True),
    Column("gpu", Text, nullable=False),
    Column("arch_raw", Text, nullable=False),
    Column("driver", Text, nullable=False),
    Column("toolkit", Text, nullable=False),
    Column("triton", Text, nullable=False),
    Column("triton_key", Text, nullable=False),
    Column("torch", Text, nullable=False),
    Column("paiton", Text, nullable=False),
    Column("policy", Text, nullable=False),
)

SOURCE = Table(
    "source",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("digest", LargeBinary(16), nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("licence", Text, nullable=False),
    Column("signer", Text, nullable=False),
)

RUN = Table(
    "run",
    METADATA,
    Column("id", LargeBinary(16), primary_key=True),
    Column("arguments", Text, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("env", Integer, ForeignKey("env.id"), nullable=False),
    Column("compiler", LargeBinary(8), nullable=False),
    Column("started_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger),
    Column("status", Text, nullable=False),
)

# Identity in clear of every cell that has a trial, whether or not it has an answer yet.
CELL = Table(
    "cell",
    METADATA,
    Column("key", LargeBinary(16), primary_key=True),
    Column("arch", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("kernel", Text, nullable=False),
    Column("kernel_digest", Text, nullable=False),
    Column("signature", Text, nullable=False),
    Column("dtype", Text, nullable=False),
    Column("batch", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# Append-only: a finished trial is evidence and is never changed.
TRIAL = Table(
    "trial",
    METADATA,
    Column("run", LargeBinary(16), ForeignKey("run.id"), primary_key=True),
    Column("no", Integer, primary_key=True),
    Column("cell", LargeBinary(16), ForeignKey("cell.key"), nullable=False),
    Column("params", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("us", Double),
    Column("score", Double),
    Column("told", Double, nullable=False),
    Column("samples", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("facts", Text),
    Column("model_version", Text, nullable=False),
    Column("worker", Text, nullable=False),
    Column("ts_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
TRIAL_BY_CELL = Index("trial_by_cell", TRIAL.c.cell)

# Content-keyed results of the compiler, shared by all runs and batch buckets.
COMPILED = Table(
    "compiled",
    METADATA,
    Column("key", LargeBinary(16), primary_key=True),
    Column("state", Text, nullable=False),
    Column("facts", Text),
    Column("seconds", Double, nullable=False),
    Column("error", Text, nullable=False),
    Column("ts_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

META = Table(
    "meta",
    METADATA,
    Column("k", Text, primary_key=True),
    Column("v", Text, nullable=False),
    sqlite_with_rowid=False,
)
