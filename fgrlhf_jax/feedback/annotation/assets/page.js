"use strict";
const $ = (id) => document.getElementById(id);
const SILENCE = 60;  // seconds without a sign of life that count as a pause
const CODE = /^(?:```|\t| {4})/m;  // lines of code
const MOMENT = 250;  // milliseconds between the last key and the comparison
let token = sessionStorage.token || localStorage.token || "";
let away = false;  // whether the server did not answer
let nameAsked = "";  // a new name, about which the server has asked
let shown = {row: ""};  // the row of this tab, as the server sent it
let seconds = 0, alive = Date.now(), timer = 0, sent = Promise.resolve(), waiting = 0;

function say(text, wrong = false) {
  $("message").textContent = text;
  $("message").className = wrong ? "wrong" : "";
}

/** What is typed in this tab; it survives a reload, also while the server is away. */
function typed() {
  const tags = $("tags").value.split(",").map((tag) => tag.trim()).filter(Boolean);
  const now = {row: shown.row, digest: shown.digest, text: $("edit").value, tags,
    comment: $("comment").value, seconds};
  if (now.row && now.text.length <= shown.longest) sessionStorage.typed = JSON.stringify(now);
  return now;
}

/** Sends an action after those before it; the answer, or undefined where there is none. */
function ask(action, data = {}) {
  const body = JSON.stringify({action, ...data});
  waiting += 1;
  sent = sent.then(() => post(body)).finally(() => { waiting -= 1; });
  return sent;
}

async function post(body) {
  let response;
  try {
    response = await fetch("act", {method: "POST", body, cache: "no-store",
      headers: {"Content-Type": "application/json", "Authorization": token}});
    if (response.headers.get("Content-Type") !== "application/json") {
      say(`The server's answer cannot be read (status ${response.status}): ` +
        (await response.text()).slice(0, 300), true);
      return undefined;
    }
    const answer = await response.json();
    if (answer.enter) enter();
    if (answer.message !== undefined) say(answer.message, answer.wrong);
    away = false;
    return answer;
  } catch {
    away = true;
    say("Not saved: the server does not answer. Your text is still here; try again.", true);
    return undefined;
  }
}

/** Shows the start page. */
function enter() {
  $("start").hidden = false;
  for (const id of ["work", "bar", "menu"]) $(id).hidden = true;
  $("progress").textContent = "";
  $("enter").before($("message"));
  $("name").focus();
}

/** Shows the row that an answer holds, or that there is none. */
function show(answer) {
  if (!answer || answer.row === undefined) return;
  shown = answer;
  seconds = answer.seconds;
  clearTimeout(timer);
  $("start").hidden = true;
  for (const id of ["work", "bar", "menu"]) $(id).hidden = false;
  $("work").before($("message"));
  $("leave").textContent = `Not ${answer.annotator}?`;
  $("prompt").innerHTML = answer.prompt;
  $("sides").hidden = $("notes").hidden = !answer.row;
  for (const control of document.querySelectorAll("#bar .row")) control.hidden = !answer.row;
  $("edit").value = answer.text;
  $("tags").value = answer.tags.join(", ");
  $("comment").value = answer.comment;
  $("notes").open = Boolean($("tags").value || $("comment").value);
  setCode(CODE.test(answer.original));
  $("prompt").classList.toggle("code", CODE.test($("prompt").textContent));
  $("next").textContent = answer.row ? "Decide later" : "Look again";
  compare(answer);
  const turn = $("prompt").querySelector(".turn:last-child");
  $("prompt").scrollTop = turn ? turn.offsetTop - $("prompt").offsetTop - 24 : 0;  // below "Row"
  scrollTo(0, 0);
  if (answer.row) $("edit").focus({preventScroll: true});
}

function compare(answer) {
  if (!answer) return;
  if (answer.progress) $("progress").innerHTML = answer.progress;
  if (answer.difference === undefined) return;
  $("edits").innerHTML = answer.edits;
  $("difference").innerHTML = answer.difference;
  nameSave(answer.changed);
  scrollToChange();
}

/** Says on its button what a decision would be. */
function nameSave(changed) {
  $("save").textContent = changed ? "Save the edit" : "Fine as it is";
}

/** Scrolls the difference to the change at the caret, or the last one before it. */
function scrollToChange() {
  const panel = $("difference").querySelector(".text"), caret = $("edit").selectionEnd;
  let at = 0, change;
  for (const part of panel.childNodes) {
    if (at > caret) break;
    if (part.nodeType === Node.ELEMENT_NODE) change = part;
    if (part.nodeName !== "DEL") at += part.textContent.length;
  }
  change = change || panel.querySelector("ins, del");
  if (!change) return;
  const top = change.getBoundingClientRect().top - panel.getBoundingClientRect().top;
  panel.scrollTop += top - panel.clientHeight / 3;
}

function setCode(on) {
  $("code").checked = on;
  for (const id of ["edit", "difference", "found"]) $(id).classList.toggle("code", on);
}

function isTooLong(length) {
  const answer = length > shown.longest;
  if (answer) say(`${length} characters are too many: ${shown.longest} at most.`, true);
  return answer;
}

/** Sends what is typed to be kept, and shows what it changes. */
function keep() {
  if (!shown.row) return undefined;
  const now = typed();
  clearTimeout(timer);
  if (isTooLong(now.text.length)) return undefined;
  return ask("draft", now).then((answer) => {
    if (!answer || answer.wrong) return;
    if (sessionStorage.typed === JSON.stringify(now)) delete sessionStorage.typed;
    if ($("message").className) say("");
    if (now.row === shown.row && now.text === $("edit").value) compare(answer);
  });
}

function use(text) {
  keep();  // so that what was there can be had back
  $("edit").value = text;
  $("edit").focus();
  keep();
}

async function decide(action, more = {}) {
  clearTimeout(timer);
  const before = typed(), answer = await ask(action, {...before, ...more});
  if (answer && answer.confirm) {
    $("question").textContent = answer.confirm;
    $("confirm").showModal();
  } else if (answer && answer.row && answer.row === shown.row &&
      (before.row !== shown.row || before.text !== $("edit").value)) {
    keep();  // somebody typed on meanwhile
  } else if (answer && answer.row !== undefined) {
    // Decided in another tab, and taken back in this one, where a save was refused.
    const isUnsaved = action === "reopen" && answer.row === before.row && before.text !== shown.text;
    delete sessionStorage.typed;
    show(answer);
    if (isUnsaved) use(before.text);
  } else if (before.row === shown.row && before.text === $("edit").value) {
    compare(answer);  // of a decision that is refused
  }
}

async function list(action) {
  $("search").hidden = action !== "rows";
  const answer = await ask(action, {row: shown.row, search: $("search").value});
  if (!answer || answer.list === undefined) return;
  $("found").innerHTML = answer.list;
  if (!$("list").open) $("list").showModal();
}

const ACTIONS = {
  save: () => decide("save"),
  confirm: () => decide("save", {confirmed: true}),
  skip: () => decide("skip"),
  next: () => decide("next"),
  undo: () => decide("reopen"),
  reset: () => use(shown.original),
  rows: () => { $("search").value = ""; list("rows"); },
  versions: () => { keep(); list("versions"); },
  guidelines: () => $("guidelines").showModal(),
  use: (button) => { $("list").close(); use(button.parentNode.querySelector(".text").textContent); },
  reopen: (button) => { $("list").close(); keep(); decide("reopen", {row: button.dataset.row}); },
  leave: () => {
    token = "";
    sessionStorage.clear();
    localStorage.clear();
    $("entrance").reset();
    say("");
    enter();
  },
};

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-action]");
  if (button && !(waiting && event.detail > 1)) ACTIONS[button.dataset.action](button);
});
document.addEventListener("keydown", (event) => {
  const plain = event.altKey && !event.ctrlKey && !event.metaKey && !event.shiftKey;
  const id = (event.ctrlKey || event.metaKey) && event.key === "Enter" ? "save"
    : plain ? {KeyS: "skip", KeyN: "next", KeyU: "undo"}[event.code] : undefined;
  if (!id || $("bar").hidden || $(id).hidden || event.isComposing) return;
  if (document.querySelector("dialog[open]")) return;
  event.preventDefault();
  if (!event.repeat) $(id).click();
}, true);
for (const id of ["edit", "tags", "comment"]) {
  $(id).addEventListener("input", () => {
    // At once: the comparison comes a moment later. A textarea has no carriage returns.
    nameSave(typed().text !== shown.original.replace(/\r\n?/g, "\n"));
    clearTimeout(timer);
    timer = setTimeout(keep, MOMENT);
  });
}
$("edit").addEventListener("beforeinput", (event) => {  // a browser takes minutes to lay it out
  if (event.data && isTooLong($("edit").value.length + event.data.length)) event.preventDefault();
});
$("code").addEventListener("change", () => setCode($("code").checked));
$("search").addEventListener("input", () => list("rows"));
$("entrance").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = $("name").value, password = $("password") ? $("password").value : "";
  const answer = await ask("enter", {name, password, new: name === nameAsked});
  nameAsked = answer && answer.new ? name : "";
  if (answer && answer.wrong) {
    const field = name.trim() && $("password") ? "password" : "name";
    $(field).value = "";
    $(field).focus();
  }
  if (!answer || !answer.token) return;
  sessionStorage.token = localStorage.token = token = answer.token;
  show(await ask("open"));
});
for (const kind of ["keydown", "pointerdown", "pointermove", "scroll"]) {
  document.addEventListener(kind, () => { alive = Date.now(); }, {capture: true, passive: true});
}
setInterval(() => {
  if (shown.row && !document.hidden && Date.now() - alive < 1000 * SILENCE) seconds += 1;
}, 1000);
setInterval(() => { if (shown.row) away ? keep() : ask("ping"); }, 1000 * Number(document.body.dataset.ping));
if (!token) enter();
else {
  ask("open", JSON.parse(sessionStorage.typed || "{}")).then((answer) => {
    if (answer && answer.row !== undefined) delete sessionStorage.typed;
    show(answer);
  });
}
