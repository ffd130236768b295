-- What TimescaleDB adds: chunks by day, columnar storage, hours, and the end of what is old. Run after tables.sql.

\set ON_ERROR_STOP on
CREATE EXTENSION IF NOT EXISTS timescaledb;

SELECT create_hypertable('sample', by_range('time', INTERVAL '1 day'));
ALTER TABLE sample SET (
    timescaledb.compress,
    timescaledb.compress_segmentby = 'site, meter, quantity',
    timescaledb.compress_orderby = 'time DESC'
);

-- Hours, which stay when the values are gone.
CREATE MATERIALIZED VIEW sample_hour WITH (timescaledb.continuous) AS
SELECT time_bucket(INTERVAL '1 hour', time) AS hour, site, meter, quantity,
    first(value, time) FILTER (WHERE value IS NOT NULL) AS first,
    last(value, time) FILTER (WHERE value IS NOT NULL) AS last,
    min(value) AS min, avg(value) AS avg, max(value) AS max,
    count(value) AS told, count(*) FILTER (WHERE quality <> 'good') AS doubtful
FROM sample
GROUP BY 1, 2, 3, 4
WITH NO DATA;

-- A bridge may deliver what waited for days: hours are made anew for ten days back, and only later do values become
-- columns. Keep this order when you change one: waits at the bridge < made anew < columns < dropped.
SELECT add_continuous_aggregate_policy('sample_hour',
    start_offset => INTERVAL '10 days', end_offset => INTERVAL '1 hour', schedule_interval => INTERVAL '1 hour');
SELECT add_compression_policy('sample', INTERVAL '14 days');
SELECT add_retention_policy('sample', INTERVAL '90 days');

GRANT SELECT ON sample_hour TO viewer;
