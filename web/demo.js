// The demo page: a form for POST /create, and the e-mails of a local run. What others wrote is only ever set as text, or
// shown in a frame that runs and loads nothing.
const inbox = document.querySelector("notifier-inbox");
const $ = (id) => document.getElementById(id);
const form = $("create"), outcome = $("outcome"), credential = $("enter").elements.token;
const { user_id, key, target_id, data } = form.elements;
let kinds = {}, setup = {};

const at = (path) => new URL(path, location).href; // the service may be behind a path
const element = (tag, text, properties = {}) => Object.assign(document.createElement(tag), { textContent: text }, properties);

function ask(path, options, token = inbox.getAttribute("token")) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  return fetch(path, { ...options, headers, signal: AbortSignal.timeout(15_000) });
}

const checkUser = (token) => ask(`list?limit=0&user_id=${encodeURIComponent(user_id.value.trim())}`, {}, token);

// --- faults, beside their fields -------------------------------------------------------------------------

for (const field of [...form.elements, credential]) {
  if (!field.name) continue;
  const fault = element("span", "", { className: "fault", id: `${field.name}-fault` });
  field.setAttribute("aria-describedby", fault.id);
  field.parentElement.after(fault);
}

function showFault(field, fault) {
  field.setAttribute("aria-invalid", Boolean(fault));
  $(`${field.name}-fault`).textContent = fault ? [fault].flat().map(String).join(" ") : "";
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
    return "The service cannot be reached.";
  }
}

inbox.addEventListener("notifier-unauthorized", () => askForKey("The key or token is not valid for this user, or has expired."));
$("enter").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.target.querySelector("button");
  const token = String.fromCharCode(...new TextEncoder().encode(credential.value.trim())); // a header has bytes, not letters
  button.disabled = true;
  const refusal = await refusalOf(token);
  button.disabled = false;
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

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function showCurl() {
  try {
    const header = setup.keys ? `-H "Authorization: Bearer $API_KEY" ` : ""; // the key itself is never shown
    $("curl").textContent = `curl ${header}-d ${quoted(JSON.stringify(fieldsOf()))} ${at("create")}`;
  } catch {
    $("curl").textContent = "";
  }
}

form.addEventListener("input", () => {
  showCurl();
  showLines();
});
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
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    const response = await ask("create", { method: "POST", body: JSON.stringify(fields) });
    const answer = await response.json();
    if (response.status === 401) askForKey(answer.detail);
    showFaults(answer.errors ?? {}, response.ok ? "Created." : answer.errors ? "" : answer.detail);
    if (response.ok) awaitMail();
  } catch {
    showFaults({}, "The service cannot be reached.");
  } finally {
    button.disabled = false;
  }
});

// --- kinds, and an example of what each is about ---------------------------------------------------------

const PLACEHOLDER = /{([^{}|]+)(?:\|[^{}]*)?}/g;
const TARGET = "0399ea67638f394d4b7243fc";
const TODAY = new Date().toISOString().slice(0, 10);
const BY_NAME = { __proto__: null, name: "Ann", by: "Ann", author: "Ann", sender: "Ann", from: "Ann" };
const BY_LAST_WORD = {
  __proto__: null,
  number: 1027, count: 3, amount: 49.9, price: 49.9, total: 49.9, date: TODAY, day: TODAY, at: TODAY,
  city: "Oslo", place: "Oslo", title: "How we moved house",
};
const suggested = { data: "", target_id: "" };

function valueOf(name) {
  const words = name.replace(/[A-Z]/g, "_$&").toLowerCase().split("_");
  return BY_NAME[name] ?? BY_LAST_WORD[words.at(-1)] ?? `some ${words.join(" ")}`;
}

// The fields that the label and the url of a kind name, with values to read in their place.
function exampleOf(name) {
  const { label = inbox.getAttribute(`label-${name}`), labels, url } = kinds[name];
  const texts = [label, url, ...Object.values(labels ?? {})].filter(Boolean).join(" ");
  const example = Object.create(null);
  for (const [, path] of texts.matchAll(PLACEHOLDER)) {
    if (path === "target_id") example.target_id = TARGET;
    const names = path.split("."), last = names.pop();
    if (names[0] !== "data") continue;
    let at = example;
    for (const name of names) at = Object(at[name]) === at[name] ? at[name] : (at[name] = Object.create(null));
    at[last] ??= valueOf(last);
  }
  return example;
}

function suggest() {
  const example = exampleOf(key.value);
  const next = { target_id: example.target_id ?? "", data: example.data ? JSON.stringify(example.data) : "" };
  for (const field of [target_id, data]) {
    if (field.value === suggested[field.name]) field.value = next[field.name]; // what was typed stays
  }
  Object.assign(suggested, next);
}

key.addEventListener("input", suggest); // before the form's own listener

function showKinds() {
  for (const [name, { label }] of Object.entries(kinds)) if (label) inbox.removeAttribute(`label-${name}`);
  const both = Object.values(kinds).find((kind) => kind.in_app && kind.email);
  key.replaceChildren(...Object.entries(kinds).map(([name, kind]) => {
    const does = [kind.in_app && "kept", kind.email && "e-mailed"].filter(Boolean).join(", and ");
    return element("option", `${name} – ${does}`, { value: name, selected: kind === both });
  }));
  suggest();
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
  if (fresh.length && shown.has(undefined)) list.replaceChildren();
  list.prepend(...fresh.map(itemOf));
  if (!list.children.length) list.append(element("li", "None yet."));
  return fresh.length > 0;
}

function itemOf({ file, to, subject, text, html }) {
  const item = element("li");
  item.dataset.file = file;
  item.append(element("strong", subject), element("pre", text.trim()));
  if (html) {
    const frame = element("iframe", "", { src: html, title: `HTML of “${subject}”`, loading: "lazy" });
    frame.setAttribute("sandbox", "");
    item.append(frame);
  }
  item.append(element("small", `to ${to} – ${file}`));
  return item;
}

async function awaitMail() {
  for (const pause of [200, 500, 1000, 2000, 4000]) {
    await new Promise((done) => setTimeout(done, pause));
    if (await showMails()) return;
  }
}

addEventListener("focus", showMails); // the user may have used the terminal

// --- the bell ----------------------------------------------------------------------------------------

inbox.addEventListener("notification", ({ detail }) => {
  const toast = element("div", `New: ${detail.key}`, { className: "toast" });
  $("toasts").append(toast);
  setTimeout(() => toast.remove(), 4000);
  if (kinds[detail.key]?.email) awaitMail();
});

function showLines() {
  const id = user_id.value.trim().replaceAll("&", "&amp;").replaceAll('"', "&quot;");
  const token = setup.keys
    ? 'getToken = async () => (await fetch("/notifier-token")).text();'
    : 'addEventListener("notifier-unauthorized", async ({ target }) => target.setAttribute("token", await (await fetch("/notifier-token")).text()));'; // waits for keys
  $("lines").textContent = `<script type="module" src="${at("inbox.js")}"></script>
<notifier-inbox user-id="${id}"></notifier-inbox>
<script type="module">
  document.querySelector("notifier-inbox").${token}
</script>`;
}

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
    return showFaults({}, "The service cannot be reached.");
  }
  $("examples").hidden = !setup.examples;
  $("key-hint").hidden = !setup.keys;
  if (setup.keys) askForKey();
  else inbox.setAttribute("user-id", user_id.value);
  showKinds();
  showCurl();
  showLines();
  showMails();
}

start();
