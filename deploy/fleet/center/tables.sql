-- What the fleet's database holds. Plain PostgreSQL (12 and later); timescale.sql adds what only TimescaleDB has.
-- Energy is in Wh, power in W, moments in UTC.

\set ON_ERROR_STOP on
\getenv collector_password COLLECTOR_PASSWORD

-- Live values as they came. A bridge or a collector that came back may tell a value twice: last(), min() and max() do not
-- mind, and avg() hardly does. `value` is null where a meter was not read: quality is "bad" then.
CREATE TABLE sample (
    time     timestamptz NOT NULL,
    site     text NOT NULL,
    meter    text NOT NULL,
    quantity text NOT NULL,
    value    double precision,
    unit     text,
    quality  text
);
CREATE INDEX sample_meter ON sample (site, meter, quantity, time DESC);

-- The figure of a local day: one row for ever. What becomes of its delivery changes, its energy does not.
CREATE TABLE day_figure (
    site       text NOT NULL,
    meter      text NOT NULL,
    day        date NOT NULL,
    state      text NOT NULL,
    period_wh  bigint,
    total_wh   bigint,
    estimated  boolean NOT NULL,
    reason     text NOT NULL,
    deliveries jsonb NOT NULL,
    told       timestamptz NOT NULL,
    PRIMARY KEY (site, meter, day)
);

-- The newest word of each site and meter: status, bridge, state, and availability of a meter.
CREATE TABLE newest (
    site  text NOT NULL,
    meter text NOT NULL DEFAULT '',
    what  text NOT NULL,
    value text NOT NULL,
    told  timestamptz NOT NULL,
    PRIMARY KEY (site, meter, what)
);

-- Where the collector writes retained messages. Nothing stays in here but what could not be understood.
CREATE TABLE retained_in (
    time  timestamptz NOT NULL,
    site  text NOT NULL,
    meter text,
    what  text NOT NULL,
    day   text,
    value text NOT NULL
);

CREATE FUNCTION take_retained() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    told jsonb;
BEGIN
    IF NEW.what = 'state' AND NEW.value <> '' THEN  -- what site_now reads of it must be readable
        told := NEW.value::jsonb;
        PERFORM (told->>'alarms')::int, (told->>'held_days')::int, (told->>'missing_days')::int;
    END IF;
    IF NEW.what <> 'day' THEN
        INSERT INTO newest VALUES (NEW.site, coalesce(NEW.meter, ''), NEW.what, NEW.value, NEW.time)
        ON CONFLICT (site, meter, what) DO UPDATE SET value = excluded.value, told = excluded.told
        WHERE newest.told <= excluded.told;
        RETURN NULL;
    END IF;
    IF NEW.value = '' THEN  -- taken back from the broker after 14 days; here it stays
        RETURN NULL;
    END IF;
    told := NEW.value::jsonb;
    INSERT INTO day_figure VALUES (
        NEW.site, NEW.meter, NEW.day::date, told->>'state', (told->>'period_wh')::bigint, (told->>'total_wh')::bigint,
        (told->>'estimated')::boolean, told->>'reason', told->'deliveries', NEW.time
    )
    ON CONFLICT (site, meter, day) DO UPDATE SET
        state = excluded.state, period_wh = excluded.period_wh, total_wh = excluded.total_wh,
        estimated = excluded.estimated, reason = excluded.reason, deliveries = excluded.deliveries, told = excluded.told
    WHERE day_figure.told <= excluded.told;
    RETURN NULL;
EXCEPTION WHEN data_exception OR integrity_constraint_violation THEN
    RETURN NEW;  -- one bad message must not take the other 4,999 of its batch with it
END
$$;
CREATE TRIGGER take_retained BEFORE INSERT ON retained_in FOR EACH ROW EXECUTE FUNCTION take_retained();

-- What a fleet owner looks at first: sites by what is wrong with them.
CREATE VIEW site_now AS
SELECT site,
    -- What the gateway said last holds only while its site's bridge is up; without a bridge it speaks for itself.
    CASE max(value) FILTER (WHERE what = 'bridge')
        WHEN '0' THEN 'line lost' ELSE max(value) FILTER (WHERE what = 'status') END AS gateway,
    count(*) FILTER (WHERE what = 'availability' AND value <> 'online') AS meters_away,
    max((value::jsonb->>'alarms')::int) FILTER (WHERE what = 'state' AND value <> '') AS alarms,
    max((value::jsonb->>'held_days')::int) FILTER (WHERE what = 'state' AND value <> '') AS held_days,
    max((value::jsonb->>'missing_days')::int) FILTER (WHERE what = 'state' AND value <> '') AS missing_days,
    max(value::jsonb->>'software') FILTER (WHERE what = 'state' AND value <> '') AS software,
    max(told) AS told
FROM newest
GROUP BY site;

CREATE ROLE collector LOGIN PASSWORD :'collector_password';
GRANT INSERT ON sample, retained_in TO collector;

-- For Grafana and people.
CREATE ROLE viewer NOLOGIN;
GRANT SELECT ON sample, day_figure, newest, retained_in, site_now TO viewer;
