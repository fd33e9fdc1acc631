"use strict";

// Everything is put into the page as text, never as HTML: names of cameras come from outside.
const LIMIT = 50;
const NAMES = { snapshot: "snapshot", short_mp4: "short clip", event_mp4: "event clip" };
const cards = new Map();

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function clock(ms) {
  const time = new Date(ms);
  return time.toLocaleTimeString([], { hour12: false }) + "." + String(time.getMilliseconds()).padStart(3, "0");
}

function after(ms) {
  const sign = ms < 0 ? "−" : "+";
  const size = Math.abs(ms);
  if (size < 1000) return `${sign}${size} ms`;
  if (size < 120000) return `${sign}${(size / 1000).toFixed(1)} s`;
  return `${sign}${Math.round(size / 60000)} min`;
}

function hop(table, what, at, from, className) {
  const row = table.insertRow();
  row.insertCell().append(make("span", className, what));
  const cell = row.insertCell();
  cell.className = "time";
  cell.textContent = at === null ? "…" : from === null ? clock(at) : after(at - from);
  return row;
}

function size(bytes) {
  return bytes < 1048576 ? `${Math.ceil(bytes / 1024)} KiB` : `${(bytes / 1048576).toFixed(1)} MiB`;
}

function drawHops(table, alarm) {
  table.replaceChildren();
  const started = Date.parse(alarm.request.event_time);
  hop(table, "happened at the site", started, null);
  hop(table, "posted", alarm.received_at, started);
  for (const upload of alarm.uploads) {
    const name = NAMES[upload.kind] + (upload.seq ? ` ${upload.seq + 1}` : "");
    const row = hop(table, `${name} put`, upload.put_at, started);
    if (upload.size !== null) row.insertCell().append(make("span", "soft", size(upload.size)));
    if (upload.looks_wrong) row.insertCell().append(make("span", "bad", upload.looks_wrong));
    hop(table, `${name} confirmed`, upload.confirmed_at, started, upload.confirmed_at ? "good" : "");
  }
  if (alarm.status === "discarded") hop(table, `discarded: ${alarm.reason}`, alarm.received_at, started, "bad");
  if (alarm.repeats) hop(table, `repeated ${alarm.repeats} ×, answered from the stored answer`, alarm.received_at, started);
  if (alarm.double) hop(table, "the same event_id again: a second alarm at the station", alarm.received_at, started, "bad");
}

function drawPictures(box, alarm) {
  for (const upload of alarm.uploads) {
    const id = `${alarm.chekt_event_id}-${upload.kind}-${upload.seq}`;
    const version = `${upload.href}?${upload.puts}`;
    const there = document.getElementById(id);
    if (!upload.href || (there && there.dataset.version === version)) continue;
    const picture = make(upload.kind === "snapshot" ? "img" : "video");
    picture.id = id;
    picture.dataset.version = version;
    if (upload.kind === "snapshot") {
      picture.alt = `${NAMES[upload.kind]} of ${alarm.request.camera_id}`;
    } else {
      picture.controls = true;
      picture.muted = true;
      picture.preload = "metadata";
    }
    picture.src = upload.href;
    if (there) there.replaceWith(picture);
    else box.append(picture);
  }
}

function draw(alarm) {
  let card = cards.get(alarm.chekt_event_id);
  if (!card) {
    const article = make("article", "new");
    const left = make("div");
    const said = alarm.request;
    const end = said.event_status === "inactive" ? (said.event_type === "alarm" ? " ended" : " restored") : "";
    left.append(make("h2", "", `${said.event_type}${end}: ${said.camera_id}`));
    const signal = said.should_signal_to_monitoring_center ? "signals the station" : "does not signal the station";
    left.append(make("p", "soft", `${alarm.chekt_event_id} · location ${said.location_id} · ${signal} · event_id ${said.event_id}`));
    const table = left.appendChild(make("table"));
    const pictures = make("div", "pictures");
    article.append(left, pictures);
    document.getElementById("alarms").prepend(article);
    card = { article, table, pictures };
    cards.set(alarm.chekt_event_id, card);
    if (cards.size > LIMIT) {
      const [oldest, its] = cards.entries().next().value;
      its.article.remove();
      cards.delete(oldest);
    }
  }
  drawHops(card.table, alarm);
  drawPictures(card.pictures, alarm);
}

function drawSummary(summary) {
  const n = summary.counts;
  document.getElementById("counts").textContent =
    `${n.events} events · ${n.confirmed} of ${n.slots} pictures and clips confirmed · ` +
    `${n.repeats} repeats · ${n.duplicates} doubled · ${n.refused} refused requests`;
  document.getElementById("refused").hidden = summary.refusals.length === 0;
  document.getElementById("refusals").replaceChildren(...summary.refusals.toReversed().map((refused) =>
    make("li", "", `${clock(refused.received_at)} ${refused.method} ${refused.path} → ${refused.status}: ${refused.why}`)));
}

const stream = new EventSource("/_simulator/stream");
stream.addEventListener("alarm", (message) => draw(JSON.parse(message.data)));
stream.addEventListener("summary", (message) => drawSummary(JSON.parse(message.data)));
stream.onerror = () => { document.getElementById("counts").textContent = "The simulator does not answer; trying again …"; };
stream.onopen = () => { cards.clear(); document.getElementById("alarms").replaceChildren(); };
