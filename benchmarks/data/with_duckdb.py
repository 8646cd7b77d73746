"""The job in duckdb: python benchmarks/data/with_duckdb.py INPUT OUTPUT (see job.py)."""

import duckdb
from job import CATEGORIES, HIGH, LOW, NUMBERS, paths

source, target = paths()
duckdb.sql("SET preserve_insertion_order = false")
duckdb.sql(f"CREATE TABLE kept AS SELECT DISTINCT * FROM '{source}'")
quantiles = ", ".join(f"quantile_cont({name}, [{LOW}, 0.5, {HIGH}])" for name in NUMBERS)
(bounds,) = duckdb.sql(f"SELECT {quantiles} FROM kept").fetchall()
(modes,) = duckdb.sql(f"SELECT {', '.join(f'mode({name})' for name in CATEGORIES)} FROM kept").fetchall()
clipped = {
    name: f"greatest({low!r}, least({high!r}, coalesce({name}, {median!r})))"
    for name, (low, median, high) in zip(NUMBERS, bounds, strict=True)
}
pairs = ", ".join(f"[avg({values}), stddev_pop({values})]" for values in clipped.values())
(moments,) = duckdb.sql(f"SELECT {pairs} FROM kept").fetchall()
columns = [
    f"({values} - {mean!r}) / {std!r} AS {name}"
    for (name, values), (mean, std) in zip(clipped.items(), moments, strict=True)
]
for name, mode in zip(CATEGORIES, modes, strict=True):
    values = duckdb.sql(f"SELECT DISTINCT {name} FROM kept WHERE {name} IS NOT NULL ORDER BY 1").fetchall()
    columns += [f"(coalesce({name}, '{mode}') = '{value}') AS \"{name}_{value}\"" for (value,) in values]
duckdb.sql(
    f"COPY (SELECT id, note, {', '.join(columns)} FROM kept) TO '{target}' (FORMAT parquet, COMPRESSION uncompressed)"
)
