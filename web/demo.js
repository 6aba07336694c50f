// The demo page: a form for POST /create, and the e-mails of a local run. What others wrote is only ever set as text.
const inbox = document.querySelector("notifier-inbox");
const $ = (id) => document.getElementById(id);
const form = $("create"), outcome = $("outcome");
let kinds = {};

const element = (tag, text, className = "") => Object.assign(document.createElement(tag), { textContent: text, className });

function ask(path, options) {
  const token = inbox.getAttribute("token");
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  return fetch(path, { ...options, headers, signal: AbortSignal.timeout(15_000) });
}

// --- access ----------------------------------------------------------------------------------------

inbox.addEventListener("notifier-unauthorized", () => {
  $("access").hidden = false;
});
$("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  $("access").hidden = true;
  inbox.setAttribute("token", event.target.elements.token.value.trim());
  event.target.reset();
  showMails();
});

// --- create ------------------------------------------------------------------------------------------

for (const field of form.elements) {
  if (!field.name) continue;
  const fault = element("span", "", "fault");
  fault.id = `${field.name}-fault`;
  field.setAttribute("aria-describedby", fault.id);
  field.parentElement.after(fault);
}

function fieldsOf() {
  const { user_id, key, target_id, data } = form.elements;
  const fields = { user_id: user_id.value.trim(), key: key.value };
  if (target_id.value.trim()) fields.target_id = target_id.value.trim();
  if (data.value.trim()) fields.data = JSON.parse(data.value);
  return fields;
}

function showFaults(errors, otherwise = "") {
  const rest = [otherwise];
  for (const field of form.elements) {
    if (!field.name) continue;
    const fault = errors[field.name];
    field.setAttribute("aria-invalid", Boolean(fault));
    $(`${field.name}-fault`).textContent = fault ? [fault].flat().map(String).join(" ") : "";
  }
  for (const [name, fault] of Object.entries(errors)) if (!form.elements[name]) rest.push(`${name}: ${fault}`);
  outcome.textContent = rest.filter(Boolean).join(" ");
  form.querySelector("[aria-invalid=true]")?.focus();
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function showCurl() {
  try {
    const key = inbox.hasAttribute("token") ? `-H "Authorization: Bearer $API_KEY" ` : "";
    $("curl").textContent = `curl ${key}-d ${quoted(JSON.stringify(fieldsOf()))} ${location.origin}/create`;
  } catch {
    $("curl").textContent = "";
  }
}

form.addEventListener("input", showCurl);
form.elements.user_id.addEventListener("change", async ({ target }) => {
  const id = target.value.trim();
  try {
    const { status } = await ask(`/list?limit=0&user_id=${encodeURIComponent(id)}`);
    if (status !== 422 && id === target.value.trim()) inbox.setAttribute("user-id", id);
  } catch {
    // creating a notification will say that the service cannot be reached
  }
});
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  let fields;
  try {
    fields = fieldsOf();
  } catch ({ message }) {
    return showFaults({ data: `Not JSON: ${message}` });
  }
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    const response = await ask("/create", { method: "POST", body: JSON.stringify(fields) });
    const answer = await response.json();
    if (response.status === 401) $("access").hidden = false;
    showFaults(answer.errors ?? {}, response.ok ? "Created." : answer.errors ? "" : answer.detail);
    if (response.ok) awaitMail();
  } catch {
    showFaults({}, "The service cannot be reached.");
  } finally {
    button.disabled = false;
  }
});

async function showKinds() {
  try {
    kinds = (await (await ask("/kinds")).json()).data;
  } catch {
    return showFaults({}, "The service cannot be reached.");
  }
  const both = Object.values(kinds).find((kind) => kind.in_app && kind.email);
  form.elements.key.replaceChildren(...Object.entries(kinds).map(([name, kind]) => {
    const does = [kind.in_app && "kept", kind.email && "e-mailed"].filter(Boolean).join(", and ");
    return Object.assign(element("option", `${name} – ${does}`), { value: name, selected: kind === both });
  }));
  showCurl();
}

// --- e-mails -----------------------------------------------------------------------------------------

async function showMails() {
  let mails;
  try {
    const response = await ask("/demo/mails");
    if (!response.ok) return false; // not a local run, or no key yet
    ({ mails } = await response.json());
  } catch {
    return false;
  }
  $("mailbox").hidden = false;
  const newest = $("mails").firstElementChild?.dataset.file ?? "";
  if (mails.length && newest === mails[0].file) return false;
  $("mails").replaceChildren(...mails.map((mail) => {
    const item = element("li");
    item.dataset.file = mail.file;
    const more = mail.html ? " – with an HTML part, in" : " –";
    item.append(element("strong", mail.subject), element("pre", mail.text.trim()), element("small", `to ${mail.to}${more} ${mail.file}`));
    return item;
  }));
  if (!mails.length) $("mails").append(element("li", "None yet."));
  return mails.length > 0;
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
  const toast = element("div", `New: ${detail.key}`, "toast");
  $("toasts").append(toast);
  setTimeout(() => toast.remove(), 4000);
  if (kinds[detail.key]?.email) awaitMail();
});

inbox.setAttribute("user-id", form.elements.user_id.value);
showKinds();
showMails();
