// The demo page: a form for POST /create, and the e-mails of a local run. What others wrote is only ever set as text, or
// shown in a frame that runs and loads nothing.
import { describe, plain } from "./inbox/describe.js";

const inbox = document.querySelector("notifier-inbox");
const $ = (id) => document.getElementById(id);
const form = $("create"), outcome = $("outcome"), credential = $("enter").elements.token;
const { user_id, key, target_id, data } = form.elements;
const UNREACHABLE = "The service cannot be reached.";
let kinds = {}, setup = {};

const at = (path) => new URL(path, location).href; // the service may be behind a path
const element = (tag, text, properties = {}) => Object.assign(document.createElement(tag), { textContent: text }, properties);
const titled = (item) => plain(describe(inbox, kinds, item).title);
const hasRoom = matchMedia("(min-width: 72rem)"); // as in demo.css: the panel beside the mailbox

function ask(path, options, token = inbox.getAttribute("token")) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  return fetch(path, { ...options, headers, signal: AbortSignal.timeout(15_000) });
}

const checkUser = (token) => ask(`list?limit=0&user_id=${encodeURIComponent(user_id.value.trim())}`, {}, token);

// --- faults, beside their fields -------------------------------------------------------------------------

for (const field of [...form.elements, credential]) {
  if (!field.name) continue;
  const fault = element("span", "", { className: "fault", id: `${field.name}-fault` });
  field.setAttribute("aria-describedby", `${fault.id} ${field.getAttribute("aria-describedby") ?? ""}`.trim());
  field.parentElement.after(fault);
}

function showFault(field, fault) {
  field.setAttribute("aria-invalid", Boolean(fault));
  $(`${field.name}-fault`).textContent = fault ? [fault].flat().map(String).join(" ") : "";
  if (fault) field.closest("details")?.setAttribute("open", "");
}

function showFaults(errors, otherwise = "") {
  const rest = [otherwise];
  for (const field of form.elements) if (field.name) showFault(field, errors[field.name]);
  for (const [name, fault] of Object.entries(errors)) if (!form.elements[name]) rest.push(`${name}: ${fault}`);
  outcome.textContent = rest.filter(Boolean).join(" ");
  form.querySelector("[aria-invalid=true]")?.focus();
}

// --- access ----------------------------------------------------------------------------------------

const MISSING = "Enter a key or a token.";
const isLocked = () => setup.keys && !inbox.hasAttribute("token");

function askForKey(reason = "") {
  $("access").hidden = false;
  showFault(credential, reason);
}

async function refusalOf(token) {
  if (!token) return MISSING;
  try {
    const reply = await checkUser(token);
    return reply.ok || reply.status === 422 ? "" : (await reply.json()).detail; // 422 is about the user
  } catch {
    return UNREACHABLE;
  }
}

inbox.addEventListener("notifier-unauthorized", () => askForKey("The key or token is not valid for this user, or has expired."));
$("enter").addEventListener("submit", async (event) => {
  event.preventDefault();
  const token = String.fromCharCode(...new TextEncoder().encode(credential.value.trim())); // a header has bytes, not letters
  const refusal = await refusalOf(token);
  showFault(credential, refusal);
  if (refusal) return credential.focus();
  $("access").hidden = true;
  event.target.reset();
  inbox.setAttribute("token", token);
  inbox.setAttribute("user-id", user_id.value.trim());
  showMails();
});

// --- create ------------------------------------------------------------------------------------------

function fieldsOf() {
  const fields = { user_id: user_id.value.trim(), key: key.value };
  if (target_id.value.trim()) fields.target_id = target_id.value.trim();
  if (data.value.trim()) fields.data = JSON.parse(data.value);
  return fields;
}

function openBeside() {
  const held = document.activeElement;
  if (!hasRoom.matches) return;
  inbox.open();
  held.focus(); // the next one is a key press away
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function showLines() {
  const header = setup.keys ? `-H "Authorization: Bearer $API_KEY" ` : ""; // the key itself is never shown
  try {
    $("curl").textContent = `curl ${header}-d ${quoted(JSON.stringify(fieldsOf()))} ${at("create")}`;
  } catch {
    $("curl").textContent = "";
  }
  const id = user_id.value.trim().replaceAll("&", "&amp;").replaceAll('"', "&quot;");
  const token = setup.keys
    ? 'getToken = async () => (await fetch("/notifier-token")).text();'
    : 'addEventListener("notifier-unauthorized", async ({ target }) => target.setAttribute("token", await (await fetch("/notifier-token")).text()));'; // waits for keys
  $("lines").textContent = `<script type="module" async crossorigin src="${at("inbox.js")}"></script>
<notifier-inbox user-id="${id}"></notifier-inbox>
<script type="module">
  document.querySelector("notifier-inbox").${token}
</script>`;
}

form.addEventListener("input", showLines);
user_id.addEventListener("change", async () => {
  const id = user_id.value.trim();
  if (isLocked()) return;
  try {
    const { status } = await checkUser();
    if (status !== 422 && id === user_id.value.trim()) inbox.setAttribute("user-id", id);
  } catch {
    // creating a notification will say that the service cannot be reached
  }
});
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  if (button.ariaDisabled) return; // while a request is under way; a disabled button would lose the focus
  if (isLocked()) {
    askForKey(MISSING);
    return credential.focus();
  }
  let fields;
  try {
    fields = fieldsOf();
  } catch ({ message }) {
    return showFaults({ data: `Not JSON: ${message}` });
  }
  button.ariaDisabled = "true";
  try {
    const response = await ask("create", { method: "POST", body: JSON.stringify(fields) });
    const answer = await response.json();
    if (response.status === 401) askForKey(answer.detail);
    showFaults(answer.errors ?? {}, response.ok ? "Created." : answer.errors ? "" : answer.detail);
    if (response.ok) kinds[fields.key].in_app ? openBeside() : awaitMail();
  } catch {
    showFaults({}, UNREACHABLE);
  } finally {
    button.ariaDisabled = null;
  }
});

// --- kinds -------------------------------------------------------------------------------------------

const TARGET = "0399ea67638f394d4b7243fc";
const UNITS = { s: ["second", 1], m: ["minute", 60], h: ["hour", 3600], d: ["day", 86_400] };

const unitOf = (span) => UNITS[span.at(-1)];
const spelled = (span) => new Intl.NumberFormat("en", { style: "unit", unit: unitOf(span)[0], unitDisplay: "long" }).format(parseInt(span));

function whatItDoes({ in_app, email, email_after }) {
  if (!in_app) return "An e-mail only.";
  if (!email) return "In the inbox only.";
  return email_after
    ? `In the inbox, and e-mailed only if it is still unread after ${spelled(email_after)}. Read it, and no e-mail comes.`
    : "In the inbox, and e-mailed at once.";
}

function chooseKind() {
  const { example, ...kind } = kinds[key.value];
  $("does").textContent = whatItDoes(kind);
  data.value = example ? JSON.stringify(example) : "";
  target_id.value = JSON.stringify(kind).includes("{target_id}") ? TARGET : "";
}

key.addEventListener("input", chooseKind); // before the form's own listener

function showKinds() {
  const both = Object.values(kinds).find((kind) => kind.in_app && kind.email);
  key.replaceChildren(...Object.entries(kinds).map(([name, kind]) => (
    element("option", titled({ key: name, data: kind.example }), { value: name, selected: kind === both })
  )));
  chooseKind();
}

// --- e-mails -----------------------------------------------------------------------------------------

async function showMails() {
  let mails;
  if (!setup.mailbox || isLocked()) return false;
  try {
    const response = await ask("demo/mails");
    if (!response.ok) return false; // it is for keys, not for a user's token
    ({ mails } = await response.json());
  } catch {
    return false;
  }
  $("mailbox").hidden = false;
  const list = $("mails"), shown = new Set([...list.children].map((item) => item.dataset.file));
  const fresh = mails.filter((mail) => !shown.has(mail.file)); // what is shown stays, with its frame
  list.prepend(...fresh.map(itemOf));
  return fresh.length > 0;
}

function itemOf({ file, to, subject, text, html }) {
  const item = element("li");
  item.dataset.file = file;
  item.append(element("strong", subject));
  if (html) {
    const frame = element("iframe", "", { src: html, title: `HTML of “${subject}”`, loading: "lazy" });
    const asText = element("details");
    frame.setAttribute("sandbox", "");
    asText.append(element("summary", "As text"), element("pre", text.trim()));
    item.append(frame, asText);
  } else if (text.trim() !== subject) item.append(element("pre", text.trim()));
  item.append(element("small", `to ${to} – ${file}`));
  return item;
}

async function awaitMail() {
  for (const pause of [200, 500, 1000, 2000, 4000]) {
    await new Promise((done) => setTimeout(done, pause));
    if (await showMails()) return true;
  }
  return false;
}

addEventListener("focus", showMails); // the user may have used the terminal

// An e-mail that waits: it comes unless the notification is read.
function showWaiting(item) {
  const span = kinds[item.key].email_after, due = Date.now() + 1000 * parseInt(span) * unitOf(span)[1];
  const entry = element("li"), note = element("p");
  const timer = setInterval(tick, 1000);

  function tick() {
    const left = Math.ceil((due - Date.now()) / 1000);
    note.textContent = `E-mail in ${spelled(left < 100 ? `${left}s` : span)}, unless it is read first.`;
    if (left <= 0) settle(false);
  }
  async function settle(isRead) {
    clearInterval(timer);
    if (!isRead && await awaitMail()) return entry.remove();
    note.textContent = "It was read in time: no e-mail.";
  }
  entry.append(element("strong", titled(item)), note);
  $("waiting").prepend(entry);
  tick();
  inbox.addEventListener("notifier-select", ({ detail }) => { if (detail.id === item.id) settle(true); });
  inbox.addEventListener("notifier-count", ({ detail }) => { if (!detail.unread) settle(true); });
}

// --- the bell ----------------------------------------------------------------------------------------

inbox.addEventListener("notification", ({ detail }) => {
  const toast = element("button", titled(detail), { type: "button", className: "toast" });
  toast.addEventListener("click", () => inbox.open());
  $("toasts").append(toast);
  setTimeout(() => toast.remove(), 4000);
  const { email, email_after, email_batch } = kinds[detail.key] ?? {};
  if (email && !email_after) awaitMail();
  if (email_after && !email_batch) showWaiting(detail);
});
$("open").addEventListener("click", () => inbox.open());

// --- the start -----------------------------------------------------------------------------------------

if (navigator.clipboard) { // not on plain HTTP, but on this machine
  for (const code of document.querySelectorAll("pre")) {
    const button = element("button", "Copy", { type: "button", className: "copy" });
    button.ariaDescription = code.closest("details, section").querySelector("summary, h2").textContent;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    code.after(button);
  }
}

async function start() {
  try {
    const answers = ["demo/setup", "kinds"].map(async (path) => (await (await ask(path)).json()).data);
    [setup, kinds] = await Promise.all(answers);
  } catch {
    return showFaults({}, UNREACHABLE);
  }
  $("examples").hidden = !setup.examples;
  $("key-hint").hidden = !setup.keys;
  if (setup.keys) askForKey();
  else inbox.setAttribute("user-id", user_id.value);
  showKinds();
  showLines();
  showMails();
}

start();
