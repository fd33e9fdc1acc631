-- What the gateway remembers. The words of the states are those of gateway/states.py; tests compare the two.
--
-- Times: names ending in _at are milliseconds since 1970 UTC (people read them), except next_at and fetch_next_at;
-- these two and all names ending in _ticks are milliseconds of the gateway's own clock, which never runs backwards.
-- "Never" is 2^62: a time that does not come by itself.
--
-- A change here needs a new number in gateway/outbox/database.py and a step that brings an older file to it.

-- One occurrence that the cloud shall hear of, complete as it was resolved at receipt.
CREATE TABLE event (
    seq                 INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of arrival; never used twice, also not after pruning
    event_id            TEXT NOT NULL UNIQUE,  -- our own identity for it, the same in every process and after every restart
    state               TEXT NOT NULL,         -- where it stands (gateway.states.EventState)
    ready               INTEGER NOT NULL,      -- 1: pending and due, may be claimed; 0: not (yet)
    next_at             INTEGER NOT NULL,      -- ticks of its next attempt; never: waits for its beginning, or is not pending
    event_type          TEXT NOT NULL,         -- alarm, trouble or arming
    event_status        TEXT NOT NULL,         -- active (it begins) or inactive (it ends)
    rank                INTEGER GENERATED ALWAYS AS (CASE event_type WHEN 'alarm' THEN 0 WHEN 'trouble' THEN 1 ELSE 2 END) VIRTUAL,  -- alarms go before troubles, these before arming
    location_id         TEXT NOT NULL,         -- CHeKT's site
    recorder_id         TEXT,                  -- CHeKT's recorder, where there is one
    camera_id           TEXT,                  -- CHeKT's camera
    lane                TEXT GENERATED ALWAYS AS (location_id || '/' || coalesce(camera_id, '')) VIRTUAL,  -- what may have one request in flight
    source              TEXT NOT NULL,         -- the table of the configuration that its message came by
    camera              TEXT,                  -- the configured name of the camera
    source_camera       TEXT,                  -- the equipment's name of the camera
    source_id           TEXT,                  -- the equipment's id of the occurrence
    state_key           TEXT NOT NULL,         -- what joins beginning and end in the equipment's words
    kind                TEXT NOT NULL,         -- what was seen, "person"
    topic               TEXT NOT NULL,         -- the topic that its message came by; empty for the gateway's own
    follows             TEXT,                  -- event_id of the beginning that this end belongs to
    signal              INTEGER NOT NULL,      -- 1: the monitoring station shall be signalled
    details             TEXT NOT NULL,         -- JSON: what else the equipment said
    event_at            INTEGER NOT NULL,      -- when it happened
    received_at         INTEGER NOT NULL,      -- when its message was received
    received_ticks      INTEGER NOT NULL,      -- the same on our own clock
    age_unknown_ms      INTEGER,               -- it waited in the broker for at most this long (a century: nobody can tell); NULL: its age is known
    stored_at           INTEGER NOT NULL,      -- when it was written here
    acknowledged_at     INTEGER,               -- when the broker was told that it is safe
    waits_since_ticks   INTEGER NOT NULL,      -- from when its patience counts: receipt, or the last revival
    attempts            INTEGER NOT NULL DEFAULT 0,  -- tries to post it, including the one in hand
    attempt_at          INTEGER,               -- when the last try began
    attempt_ticks       INTEGER,               -- the same on our own clock
    body                BLOB,                  -- the request's bytes, fixed in the commit of the claim
    idempotency_key     TEXT,                  -- fixed with the bytes
    sent_at             INTEGER,               -- the sending time that the bytes tell
    signalled           INTEGER,               -- what the bytes say of signalling the station
    fixed               INTEGER NOT NULL DEFAULT 0,  -- 1: the bytes may have reached the cloud and are never set anew
    unclear             INTEGER NOT NULL DEFAULT 0,  -- attempts that may have reached the cloud without an answer
    refusals            INTEGER NOT NULL DEFAULT 0,  -- answers that refused this very event
    first_refused_ticks INTEGER,               -- when it was first refused
    faults              INTEGER NOT NULL DEFAULT 0,  -- exceptions of our own while it was in hand
    first_fault_ticks   INTEGER,               -- when the first of them happened
    http_status         INTEGER,               -- of the last answer
    chekt_event_id      TEXT,                  -- the cloud's id of it
    response_id         TEXT,                  -- the cloud's id of its answer
    reason              TEXT,                  -- why it is where it is, for people
    delivered_at        INTEGER,               -- when the cloud had accepted it
    closed_ticks        INTEGER,               -- when it came to its final state
    looked_at           INTEGER,               -- when a person looked at it while it was dead
    raw                 BLOB,                  -- unreadable only: the message, at most its first 64 KiB
    raw_bytes           INTEGER,               -- unreadable only: the length of the whole message
    raw_sha256          TEXT,                  -- unreadable only: the digest of the whole message
    stored_ticks        INTEGER NOT NULL,      -- when it was written here, on our own clock
    acknowledged_ticks  INTEGER,               -- when the broker was told, on our own clock
    away_since_at       INTEGER,               -- when an earlier process heard its last message: from there age_unknown_ms counts; NULL: it was measured by our own clock
    signal_anyway       INTEGER NOT NULL DEFAULT 0, -- 1: a person wants the station to be signalled however late it is
    CHECK (length(event_id) BETWEEN 1 AND 64),
    CHECK (state IN ('pending', 'sending', 'delivered', 'discarded', 'dead', 'folded', 'unmapped', 'unreadable')),
    CHECK (event_type IN ('alarm', 'trouble', 'arming')),
    CHECK (event_status IN ('active', 'inactive')),
    CHECK (ready IN (0, 1) AND (ready = 0 OR state = 'pending')),
    CHECK (next_at = 4611686018427387904 OR state = 'pending'),
    CHECK (signal IN (0, 1) AND fixed IN (0, 1)),
    CHECK (json_valid(details)),
    -- What goes to the cloud names a camera; the arming of a whole site has none.
    CHECK (camera_id IS NOT NULL OR event_type = 'arming' OR state IN ('folded', 'unmapped', 'unreadable')),
    -- Whatever may be on the wire is known byte by byte.
    CHECK (state <> 'sending' OR (body IS NOT NULL AND attempt_ticks IS NOT NULL)),
    CHECK ((body IS NULL) = (idempotency_key IS NULL) AND (body IS NULL) = (sent_at IS NULL)),
    CHECK (fixed = 0 OR body IS NOT NULL),
    CHECK (attempts >= 0 AND unclear >= 0 AND refusals >= 0 AND faults >= 0),
    CHECK ((delivered_at IS NOT NULL) = (state = 'delivered')),
    CHECK ((closed_ticks IS NOT NULL) = (state IN ('delivered', 'discarded', 'folded', 'unreadable'))),
    CHECK (reason IS NOT NULL OR state NOT IN ('dead', 'discarded', 'folded', 'unmapped', 'unreadable')),
    CHECK (state = 'unreadable' OR (raw IS NULL AND raw_bytes IS NULL AND raw_sha256 IS NULL)),
    CHECK ((acknowledged_at IS NULL) = (acknowledged_ticks IS NULL))
) STRICT;

-- The claim: the head of the queue, and the head of each lane.
CREATE INDEX event_ready ON event (rank, seq) WHERE state = 'pending' AND ready = 1;
CREATE INDEX event_ready_lane ON event (lane, rank, seq) WHERE state = 'pending' AND ready = 1;
-- What waits for a later attempt.
CREATE INDEX event_deferred ON event (next_at, rank) WHERE state = 'pending' AND ready = 0;
-- What the cloud has not answered for: fresh ones, the oldest, the expired.
CREATE INDEX event_unsettled ON event (rank, received_ticks) WHERE state IN ('pending', 'sending');
CREATE INDEX event_sending ON event (seq) WHERE state = 'sending';
CREATE INDEX event_follows ON event (follows) WHERE follows IS NOT NULL AND state = 'pending';
CREATE INDEX event_arming ON event (location_id, event_at) WHERE event_type = 'arming' AND state IN ('pending', 'sending');
-- What a person asks for, and what may be pruned.
CREATE INDEX event_for_people ON event (state, seq) WHERE state IN ('dead', 'unmapped', 'unreadable', 'discarded');
CREATE INDEX event_closed ON event (closed_ticks) WHERE closed_ticks IS NOT NULL;

-- One picture or clip that belongs to an event.
CREATE TABLE media (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice
    event_seq         INTEGER NOT NULL REFERENCES event (seq) ON DELETE CASCADE,  -- the event that it belongs to
    kind              TEXT NOT NULL,      -- what it is; the cloud's word
    seq               INTEGER NOT NULL,   -- which of its kind, from 0
    state             TEXT NOT NULL,      -- where it stands (gateway.states.MediaState)
    from_at           INTEGER NOT NULL,   -- begin of the window to show
    to_at             INTEGER NOT NULL,   -- end of the window to show
    recipe            TEXT NOT NULL,      -- JSON: where it comes from, without secrets
    announced         INTEGER,            -- what the request's bytes say of it; NULL: there are none yet
    path              TEXT,               -- its file, relative to the media folder; NULL: there is none
    bytes             INTEGER,            -- length of the file, also after it was removed
    sha256            TEXT,               -- digest of the file, also after it was removed
    fetched_at        INTEGER,            -- when the file was complete
    fetch_attempts    INTEGER NOT NULL DEFAULT 0,  -- failed tries to fetch it
    fetch_next_at     INTEGER NOT NULL,   -- ticks of the next try to fetch it
    fetch_until_ticks INTEGER NOT NULL,   -- when fetching it is given up
    put_url           TEXT,               -- the slot's address for the file: a secret, gone when it has served
    callback_url      TEXT,               -- the slot's address for the callback: likewise
    deadline_ticks    INTEGER,            -- when the slot closes
    next_at           INTEGER NOT NULL,   -- ticks of the next try to put or to confirm it
    attempts          INTEGER NOT NULL DEFAULT 0,  -- failed tries to put or to confirm it
    reason            TEXT,               -- why it is lost, or why it waits, for people
    put_at            INTEGER,            -- when the file was in the cloud's storage
    confirmed_at      INTEGER,            -- when the callback had succeeded
    UNIQUE (event_seq, kind, seq),
    CHECK (kind IN ('snapshot', 'short_mp4', 'event_mp4')),
    CHECK (state IN ('waiting', 'uploaded', 'done', 'lost')),
    CHECK (json_valid(recipe)),
    CHECK (announced IN (0, 1)),
    CHECK (path IS NULL OR (bytes IS NOT NULL AND sha256 IS NOT NULL)),
    CHECK ((put_url IS NULL) = (callback_url IS NULL)),
    CHECK (put_url IS NULL OR (deadline_ticks IS NOT NULL AND state IN ('waiting', 'uploaded'))),
    CHECK (state <> 'uploaded' OR callback_url IS NOT NULL),
    CHECK ((put_at IS NOT NULL) OR state NOT IN ('uploaded', 'done')),
    CHECK ((confirmed_at IS NOT NULL) = (state = 'done')),
    CHECK (reason IS NOT NULL OR state <> 'lost')
) STRICT;

CREATE INDEX media_to_fetch ON media (fetch_next_at) WHERE state = 'waiting' AND path IS NULL;
CREATE INDEX media_to_put ON media (next_at) WHERE state = 'waiting' AND path IS NOT NULL AND put_url IS NOT NULL;
CREATE INDEX media_to_confirm ON media (next_at) WHERE state = 'uploaded';
CREATE INDEX media_slot ON media (deadline_ticks) WHERE state = 'waiting' AND put_url IS NOT NULL;
CREATE INDEX media_file ON media (kind, id) WHERE path IS NOT NULL;

-- The ledger: what happened to an event, step by step.
CREATE TABLE hop (
    id        INTEGER PRIMARY KEY,  -- order in which it was written
    event_seq INTEGER NOT NULL REFERENCES event (seq) ON DELETE CASCADE,  -- the event that it happened to
    at        INTEGER NOT NULL,     -- when
    ticks     INTEGER NOT NULL,     -- the same on our own clock
    what      TEXT NOT NULL,        -- a word for it: attempt, recovered, revived, media_put …
    detail    TEXT NOT NULL,        -- JSON: what else is known of it
    CHECK (json_valid(detail))
) STRICT;

CREATE INDEX hop_of_event ON hop (event_seq, id);

-- What the conditions remember of each state of the equipment.
CREATE TABLE memory (
    key   TEXT NOT NULL PRIMARY KEY,  -- whose memory it is
    value TEXT NOT NULL,              -- JSON that gateway/sources/conditions.py reads
    CHECK (json_valid(value))
) STRICT, WITHOUT ROWID;

-- Messages that are safe here, but of which the broker may not have been told.
CREATE TABLE digest (
    hash  BLOB NOT NULL PRIMARY KEY,  -- SHA-256 of topic and payload
    count INTEGER NOT NULL,           -- how many such messages
    CHECK (count > 0)
) STRICT, WITHOUT ROWID;

-- Counts that would be slow to find by counting, changed in the same commit as what they count.
CREATE TABLE counter (
    name  TEXT NOT NULL PRIMARY KEY,  -- what is counted
    value INTEGER NOT NULL            -- how many
) STRICT, WITHOUT ROWID;

-- Proof of life of each camera and source.
CREATE TABLE camera_seen (
    name            TEXT NOT NULL PRIMARY KEY,  -- the configured name of a camera or of a source
    last_message_at INTEGER,                    -- when it last said anything
    last_event_at   INTEGER                     -- when it last caused an event
) STRICT, WITHOUT ROWID;

-- Single values.
CREATE TABLE meta (
    key   TEXT NOT NULL PRIMARY KEY,  -- which
    value TEXT NOT NULL               -- what
) STRICT, WITHOUT ROWID;
