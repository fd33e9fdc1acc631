PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
BEGIN TRANSACTION;
CREATE TABLE camera_seen (
    name            TEXT NOT NULL PRIMARY KEY,  -- the configured name of a camera or of a source
    last_message_at INTEGER,                    -- when it last said anything
    last_event_at   INTEGER                     -- when it last caused an event
) STRICT, WITHOUT ROWID;
INSERT INTO "camera_seen" VALUES('cam-c1',1,1772366400000);
INSERT INTO "camera_seen" VALUES('cam-c2',NULL,1772366400000);
INSERT INTO "camera_seen" VALUES('cam-c3',NULL,1772366400000);
INSERT INTO "camera_seen" VALUES('cam-c4',NULL,1772366400000);
INSERT INTO "camera_seen" VALUES('cam-c6',NULL,1772366400000);
CREATE TABLE counter (
    name  TEXT NOT NULL PRIMARY KEY,  -- what is counted
    value INTEGER NOT NULL            -- how many
) STRICT, WITHOUT ROWID;
INSERT INTO "counter" VALUES('events',7);
INSERT INTO "counter" VALUES('media_bytes',10);
INSERT INTO "counter" VALUES('media_lost',1);
INSERT INTO "counter" VALUES('media_waiting',1);
INSERT INTO "counter" VALUES('received',7);
INSERT INTO "counter" VALUES('state_dead',1);
INSERT INTO "counter" VALUES('state_delivered',1);
INSERT INTO "counter" VALUES('state_folded',1);
INSERT INTO "counter" VALUES('state_pending',1);
INSERT INTO "counter" VALUES('state_sending',1);
INSERT INTO "counter" VALUES('state_unmapped',1);
INSERT INTO "counter" VALUES('state_unreadable',1);
INSERT INTO "counter" VALUES('stored',5);
INSERT INTO "counter" VALUES('unmapped',1);
INSERT INTO "counter" VALUES('unreadable',1);
CREATE TABLE digest (
    hash  BLOB NOT NULL PRIMARY KEY,  -- SHA-256 of topic and payload
    count INTEGER NOT NULL,           -- how many such messages
    CHECK (count > 0)
) STRICT, WITHOUT ROWID;
INSERT INTO "digest" VALUES(X'0101010101010101010101010101010101010101010101010101010101010101',1);
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
INSERT INTO "event" VALUES(1,'delivered','delivered',0,4611686018427387904,'alarm','active','L','R','c1','nvr','cam-c1','c1',NULL,'','','nvr/events',NULL,1,'{"label":"person"}',1772366400000,1772366400000,1000000,NULL,1772366400000,1772366400000,1000000,1,1772366400000,1000000,X'64656C69766572656420313737323336363430303030302054727565','key-delivered-1772366400000',1772366400000,1,1,0,0,NULL,0,NULL,201,'CE','RE',NULL,1772366400000,1000000,NULL,NULL,NULL,NULL,1000000,1000000,NULL,0);
INSERT INTO "event" VALUES(2,'dead','dead',0,4611686018427387904,'alarm','active','L','R','c2','nvr','cam-c2','c2',NULL,'','','nvr/events',NULL,1,'{}',1772366400000,1772366400000,1000000,NULL,1772366400000,NULL,1000000,1,1772366400000,1000000,X'6465616420313737323336363430303030302054727565','key-dead-1772366400000',1772366400000,1,1,0,0,NULL,0,NULL,400,NULL,NULL,'refused for good (400)',NULL,NULL,NULL,NULL,NULL,NULL,1000000,NULL,NULL,0);
INSERT INTO "event" VALUES(3,'was-sending','sending',0,4611686018427387904,'alarm','active','L','R','c3','nvr','cam-c3','c3',NULL,'','','nvr/events',NULL,1,'{}',1772366400000,1772366400000,1000000,NULL,1772366400000,NULL,1000000,1,1772366400000,1000000,X'7761732D73656E64696E6720313737323336363430303030302054727565','key-was-sending-1772366400000',1772366400000,1,0,0,0,NULL,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1000000,NULL,NULL,0);
INSERT INTO "event" VALUES(4,'waits','pending',1,1000000,'alarm','active','L','R','c4','nvr','cam-c4','c4',NULL,'','','nvr/events',NULL,1,'{}',1772366400000,1772366400000,1000000,NULL,1772366400000,NULL,1000000,0,NULL,NULL,NULL,NULL,NULL,NULL,0,0,0,NULL,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1000000,NULL,NULL,0);
INSERT INTO "event" VALUES(5,'folded','folded',0,4611686018427387904,'alarm','active','L','R','c4','nvr','cam-c4','c4',NULL,'','','nvr/events',NULL,1,'{}',1772366400000,1772366400000,1000000,NULL,1772366400000,NULL,1000000,0,NULL,NULL,NULL,NULL,NULL,NULL,0,0,0,NULL,0,NULL,NULL,NULL,NULL,'inside the hold-off of an earlier alarm',NULL,1000000,NULL,NULL,NULL,NULL,1000000,NULL,NULL,0);
INSERT INTO "event" VALUES(6,'unmapped','unmapped',0,4611686018427387904,'alarm','active','L','R',NULL,'nvr',NULL,'c5',NULL,'','','nvr/events',NULL,1,'{}',1772366400000,1772366400000,1000000,NULL,1772366400000,NULL,1000000,0,NULL,NULL,NULL,NULL,NULL,NULL,0,0,0,NULL,0,NULL,NULL,NULL,NULL,'its camera is not configured',NULL,NULL,NULL,NULL,NULL,NULL,1000000,NULL,NULL,0);
INSERT INTO "event" VALUES(7,'unreadable','unreadable',0,4611686018427387904,'alarm','active','L','R',NULL,'nvr','cam-c6','c6',NULL,'','','nvr/events',NULL,1,'{}',1772366400000,1772366400000,1000000,NULL,1772366400000,NULL,1000000,0,NULL,NULL,NULL,NULL,NULL,NULL,0,0,0,NULL,0,NULL,NULL,NULL,NULL,'the message could not be understood',NULL,1000000,NULL,X'FF',1,'ff',1000000,NULL,NULL,0);
CREATE TABLE hop (
    id        INTEGER PRIMARY KEY,  -- order in which it was written
    event_seq INTEGER NOT NULL REFERENCES event (seq) ON DELETE CASCADE,  -- the event that it happened to
    at        INTEGER NOT NULL,     -- when
    ticks     INTEGER NOT NULL,     -- the same on our own clock
    what      TEXT NOT NULL,        -- a word for it: attempt, recovered, revived, media_put …
    detail    TEXT NOT NULL,        -- JSON: what else is known of it
    CHECK (json_valid(detail))
) STRICT;
INSERT INTO "hop" VALUES(1,1,1772366400000,1000000,'attempt','{"attempt":1,"started_at":1772366400000,"started_ticks":1000000,"answer":{"http_status":201},"verdict":"delivered","http_status":201,"chekt_event_id":"CE","response_id":"RE"}');
INSERT INTO "hop" VALUES(2,1,1772366400000,1000000,'media_fetched','{"kind":"snapshot","seq":0,"bytes":10}');
INSERT INTO "hop" VALUES(3,2,1772366400000,1000000,'attempt','{"attempt":1,"started_at":1772366400000,"started_ticks":1000000,"verdict":"dead","reason":"refused for good (400)","http_status":400}');
INSERT INTO "hop" VALUES(4,1,1772366400000,1000000,'said','{"x":1}');
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
INSERT INTO "media" VALUES(1,1,'snapshot',0,'waiting',0,0,'{"from":"recorder"}',1,'a.jpg',10,'0000000000000000000000000000000000000000000000000000000000000000',1772366400000,0,1000000,4600000,'https://storage.example/put?secret=1','https://api.example/callback?secret=2',9000000,1000000,0,NULL,NULL,NULL);
INSERT INTO "media" VALUES(2,1,'event_mp4',0,'lost',0,20000,'{"from":"recorder"}',1,NULL,NULL,NULL,NULL,0,1000000,4600000,NULL,NULL,NULL,1000000,0,'no slot offered',NULL,NULL);
CREATE TABLE memory (
    key   TEXT NOT NULL PRIMARY KEY,  -- whose memory it is
    value TEXT NOT NULL,              -- JSON that gateway/sources/conditions.py reads
    CHECK (json_valid(value))
) STRICT, WITHOUT ROWID;
INSERT INTO "memory" VALUES('k','{}');
CREATE TABLE meta (
    key   TEXT NOT NULL PRIMARY KEY,  -- which
    value TEXT NOT NULL               -- what
) STRICT, WITHOUT ROWID;
INSERT INTO "meta" VALUES('ticks','1000000');
CREATE INDEX event_ready ON event (rank, seq) WHERE state = 'pending' AND ready = 1;
CREATE INDEX event_ready_lane ON event (lane, rank, seq) WHERE state = 'pending' AND ready = 1;
CREATE INDEX event_deferred ON event (next_at, rank) WHERE state = 'pending' AND ready = 0;
CREATE INDEX event_unsettled ON event (rank, received_ticks) WHERE state IN ('pending', 'sending');
CREATE INDEX event_sending ON event (seq) WHERE state = 'sending';
CREATE INDEX event_follows ON event (follows) WHERE follows IS NOT NULL AND state = 'pending';
CREATE INDEX event_arming ON event (location_id, event_at) WHERE event_type = 'arming' AND state IN ('pending', 'sending');
CREATE INDEX event_for_people ON event (state, seq) WHERE state IN ('dead', 'unmapped', 'unreadable', 'discarded');
CREATE INDEX event_closed ON event (closed_ticks) WHERE closed_ticks IS NOT NULL;
CREATE INDEX media_to_fetch ON media (fetch_next_at) WHERE state = 'waiting' AND path IS NULL;
CREATE INDEX media_to_put ON media (next_at) WHERE state = 'waiting' AND path IS NOT NULL AND put_url IS NOT NULL;
CREATE INDEX media_to_confirm ON media (next_at) WHERE state = 'uploaded';
CREATE INDEX media_slot ON media (deadline_ticks) WHERE state = 'waiting' AND put_url IS NOT NULL;
CREATE INDEX media_file ON media (kind, id) WHERE path IS NOT NULL;
CREATE INDEX hop_of_event ON hop (event_seq, id);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('event',7);
INSERT INTO "sqlite_sequence" VALUES('media',2);
COMMIT;
PRAGMA application_id = 1128811348;
PRAGMA user_version = 1;
