"""The aggregator's tables, as SQLAlchemy Core sees them; `migrations` makes them.

``journal`` has one row for each update's first verdict; ``version`` is the round that counted it. An accepted
one's encoded update is the row of ``bodies`` with the same id: a table of its own, as it is written once and
never changed, and dropped when its version leaves the window that can be made anew. ``place`` orders a
round's updates where ids do not. ``strategy_state`` has the arrays that a strategy remembers, float32 in rows
of ``width``, as they were when the version was made; they are kept as long as the version's table.
``versions.kind`` is round, rollback, import or restore; ``source`` the version whose table a rollback took;
``population`` and ``strategy`` (JSON) are what a round was closed with; ``retired`` the rows (uint32) that
were retired when the version was made, kept as long as its table.

A rollback says how many accepted updates it ``dropped``. ``quality`` has the sums of what devices report of
each version.

``catalogue_changes`` is the queue of those, and their journal: a change waits while it has neither a
``version`` that made it nor a reason why it was ``refused``; ``starts`` are the values of its new rows.
"""

from sqlalchemy import BigInteger, Boolean, Column, Float, Integer, LargeBinary, MetaData, String, Table

METADATA = MetaData()

APPLIED = Table("migrations", METADATA, Column("name", String, primary_key=True))
FACTS = Table(
    "facts",
    METADATA,
    Column("name", String, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
START = Table("start", METADATA, Column("weights", LargeBinary, nullable=False))
CATALOGUE = Table(
    "catalogue",
    METADATA,
    Column("row", Integer, primary_key=True),
    Column("item_key", String, nullable=False, unique=True),
    Column("retired", Boolean, nullable=False),
)
FORMER_KEYS = Table(
    "former_keys",
    METADATA,
    Column("item_key", String, primary_key=True),
    Column("row", Integer, nullable=False),
)
CATALOGUE_CHANGES = Table(
    "catalogue_changes",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("content", String, nullable=False),
    Column("queued_at", Float, nullable=False),
    Column("version", BigInteger),
    Column("refused", String),
    Column("starts", LargeBinary),
)
VERSIONS = Table(
    "versions",
    METADATA,
    Column("version", BigInteger, primary_key=True),
    Column("item_table", LargeBinary),
    Column("sha256", LargeBinary, nullable=False),
    Column("updates", Integer, nullable=False),
    Column("staleness_sum", BigInteger, nullable=False),
    Column("bytes_up", BigInteger, nullable=False),
    Column("by_deadline", Boolean, nullable=False),
    Column("closed_at", Float, nullable=False),
    Column("kind", String, nullable=False),
    Column("source", BigInteger),
    Column("population", BigInteger),
    Column("strategy", String),
    Column("retired", LargeBinary),
    Column("dropped", Integer, nullable=False),
)
QUALITY = Table(
    "quality",
    METADATA,
    Column("version", BigInteger, primary_key=True),
    Column("finding", String, nullable=False),
    *(
        Column(name, BigInteger, nullable=False)
        for name in ("reports", "candidates", "hits", "hits_before", "beaten", "beaten_before")
    ),
    *(
        Column(name, Float, nullable=False)
        for name in ("ndcg", "ndcg_before", "loss", "loss_before", "differences", "squares")
    ),
)
STRATEGY_STATE = Table(
    "strategy_state",
    METADATA,
    Column("version", BigInteger, primary_key=True),
    Column("name", String, primary_key=True),
    Column("width", Integer, nullable=False),
    Column("content", LargeBinary, nullable=False),
)
JOURNAL = Table(
    "journal",
    METADATA,
    Column("id", BigInteger, primary_key=True),
    Column("device", String, nullable=False),
    Column("incarnation", String, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("verdict", String, nullable=False),
    Column("staleness", Integer, nullable=False),
    Column("base_version", BigInteger, nullable=False),
    Column("version", BigInteger),
    Column("place", BigInteger),
)
BODIES = Table(
    "bodies",
    METADATA,
    Column("id", BigInteger, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)
ANSWERED = Table(
    "answered",
    METADATA,
    Column("device", String, primary_key=True),
    Column("incarnation", String, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("verdict", String, nullable=False),
)
DEVICES = Table(
    "devices",
    METADATA,
    Column("device", String, primary_key=True),
)
