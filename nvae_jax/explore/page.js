// The page of `nvae-jax explore`. A picture is {request, index, image, label}: what the server needs
// to make it again, and its PNG in base64.

const $ = (id) => document.getElementById(id);
const run = await (await fetch("api/run")).json();
const windowId = crypto.randomUUID(); // the newest request of a window wins over its older ones
const numGroups = run.groups.length;
const running = new Map(); // card -> AbortController of what it waits for

const state = {
  seed: 0,
  temperature: run.scales.map(() => 0.7),
  together: true,
  recalibrate: false,
  chosen: null,
  start: null,
  end: null,
  group: 0,
  redrawSeed: 1,
  groups: Math.ceil(numGroups / 2),
  keepSeed: 1,
};

// A reload finds everything as it was; another window has its own.
const storageKey = `${run.name} ${run.model} ${run.step}`;
function store() {
  try {
    sessionStorage.setItem(storageKey, JSON.stringify(state));
  } catch {
    // Without room a reload begins anew.
  }
}
Object.assign(state, JSON.parse(sessionStorage.getItem(storageKey) ?? "{}"));

// Asking the server

function say(card, text, wrong = false) {
  const status = $(card).querySelector(".status");
  status.textContent = text;
  status.classList.toggle("wrong", wrong);
}

function showProgress({ what, done, of }) {
  const bar = $("working").querySelector("progress");
  bar.hidden = !what;
  if (of) bar.value = done / of;
  $("working").querySelector("span").textContent = what ? `${what}: ${done} of ${of}` : "";
}

async function* jsonLines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    yield* lines.map((line) => JSON.parse(line));
  }
}

async function post(path, body, signal) {
  let response;
  try {
    response = await fetch(path, { method: "POST", body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer: is nvae-jax explore still running?");
  }
  if (!response.ok) throw new Error((await response.json()).error);
  return response;
}

// The result of a request for a card, or null where a newer one has taken its place.
async function ask(card, request, shown = card) {
  running.get(card)?.abort();
  const controller = new AbortController();
  running.set(card, controller);
  const pictures = $(shown).querySelector(".pictures");
  pictures?.classList.add("stale");
  say(shown, "computing …");
  try {
    const body = JSON.stringify({ window: windowId, place: card, request });
    const response = await post("api/ask", body, controller.signal);
    for await (const message of jsonLines(response)) {
      if (message.progress) showProgress(message.progress);
      else if (message.error) throw new Error(message.error);
      else if (message.superseded) return null;
      else {
        say(shown, "");
        pictures?.classList.remove("stale");
        return message.result;
      }
    }
    throw new Error("The connection was lost: is nvae-jax explore still running?");
  } catch (error) {
    if (running.get(card) === controller) {
      const lost = error instanceof TypeError;
      say(shown, lost ? "The connection was lost: is nvae-jax explore still running?" : error.message, true);
    }
    return null;
  } finally {
    if (running.get(card) === controller) {
      running.delete(card);
      if (!running.size) showProgress({});
    }
  }
}

// Pictures

const source = (image) => `data:image/png;base64,${image}`;
const plain = (picture) => ({ request: picture.request, index: picture.index });
const same = (a, b) => a && b && JSON.stringify(plain(a)) === JSON.stringify(plain(b));

function show(card, request, images, label) {
  const buttons = images.map((image, index) => {
    const picture = { request, index, image, label: `${label} ${index}` };
    const button = document.createElement("button");
    button.setAttribute("aria-label", picture.label);
    button.tabIndex = index === 0 ? 0 : -1; // one stop of Tab for all: arrows go from there
    button.append(Object.assign(new Image(), { src: source(image), alt: "" }));
    button.addEventListener("click", () => choose(picture));
    button.picture = picture;
    return button;
  });
  const container = $(card).querySelector(".pictures");
  const focused = [...container.children].indexOf(document.activeElement);
  container.replaceChildren(...buttons);
  if (focused >= 0) move(buttons, buttons[Math.min(focused, buttons.length - 1)]);
  mark();
}

function mark() {
  for (const button of document.querySelectorAll(".pictures button")) {
    button.setAttribute("aria-pressed", String(Boolean(same(button.picture, state.chosen))));
  }
}

function move(buttons, to) {
  for (const button of buttons) button.tabIndex = button === to ? 0 : -1;
  to.focus();
}

function moveByKey(event) {
  const buttons = [...event.currentTarget.children];
  const columns = getComputedStyle(event.currentTarget).gridTemplateColumns.split(" ").length;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  const at = buttons.indexOf(document.activeElement);
  let to = event.key in steps ? at + steps[event.key] : null;
  if (event.key === "Home") to = 0;
  if (event.key === "End") to = buttons.length - 1;
  if (at < 0 || to === null) return;
  event.preventDefault();
  if (buttons[to]) move(buttons, buttons[to]);
}

// Cards

async function draw(card, request, label) {
  const result = await ask(card, request);
  if (result) show(card, request, result.images, label);
  return result;
}

const drawSamples = () =>
  draw("samples", {
    kind: "samples",
    seed: state.seed,
    temperature: state.temperature,
    recalibrate: state.recalibrate,
  }, "sample");

function drawVariations() {
  if (!state.chosen) return;
  const { group, redrawSeed: seed, temperature } = state;
  draw("redraw", { kind: "redraw", of: plain(state.chosen), group, seed, temperature }, "variation");
}

function drawKept() {
  if (!state.chosen) return;
  const { groups, keepSeed: seed, temperature } = state;
  draw("keep", { kind: "keep", of: plain(state.chosen), groups, seed, temperature }, "kept");
}

function drawInterpolation() {
  for (const end of ["start", "end"]) {
    if (state[end]) $(end).src = source(state[end].image);
    $(end).alt = state[end]?.label ?? "nothing yet";
  }
  $("swap").disabled = !(state.start && state.end);
  if ($("swap").disabled) return;
  const [start, end] = [plain(state.start), plain(state.end)];
  draw("interpolate", { kind: "interpolate", start, end }, "step");
}

async function drawDivergence() {
  if (!state.chosen) return;
  const result = await ask("divergence", { kind: "divergence", of: plain(state.chosen) });
  if (!result) return;
  const { nats, held_out: heldOut, note } = result;
  const most = Math.max(...nats, ...(heldOut ?? []), 1e-9);
  const bar = (value) => {
    const span = Object.assign(document.createElement("span"), { className: "bar" });
    span.style.width = `${(100 * Math.max(value, 0)) / most}%`;
    return span;
  };
  const rows = nats.map((value, group) => {
    const row = document.createElement("tr");
    const size = run.scales[run.groups[group]];
    for (const text of [group, `${size}×${size}`, "", value.toFixed(1), heldOut?.[group].toFixed(1) ?? "–"]) {
      row.insertCell().textContent = text;
    }
    row.cells[2].append(bar(value), ...(heldOut ? [bar(heldOut[group])] : []));
    return row;
  });
  $("held-out").textContent = `Held out: ${note}.`;
  const table = $("divergence").querySelector("table");
  table.tBodies[0].replaceChildren(...rows);
  table.hidden = false;
}

function choose(picture) {
  state.chosen = picture;
  $("preview").src = source(picture.image);
  $("preview").alt = picture.label;
  $("preview").hidden = false;
  $("chosen-label").textContent = picture.note ? `${picture.label} (${picture.note})` : picture.label;
  for (const button of document.querySelectorAll("[data-needs-choice]")) button.disabled = false;
  mark();
  store();
  drawVariations();
  drawKept();
  drawDivergence();
}

async function upload(file) {
  if (!file) return;
  try {
    if (file.size > run.largest_upload) {
      throw new Error(`the file is too large: at most ${run.largest_upload >> 20} MiB are allowed`);
    }
    say("chosen", `reading ${file.name} …`);
    const { image, note } = await (await post("api/upload", file)).json();
    say("chosen", "");
    choose({ request: { kind: "encode", image, seed: 0 }, index: 0, image, label: file.name, note });
  } catch (error) {
    say("chosen", `${file.name}: ${error.message}`, true); // the picture that was chosen stays
  }
}

async function save(ending) {
  const request = { kind: "download", of: plain(state.chosen), ending };
  const result = await ask("download", request, "chosen");
  if (!result) return;
  const link = Object.assign(document.createElement("a"), { download: result.name });
  link.href = `data:application/octet-stream;base64,${result.content}`;
  link.click();
  say("chosen", `saved ${result.name}`);
}

// Controls

function later(call) {
  let timer;
  return () => {
    store();
    clearTimeout(timer);
    timer = setTimeout(call, 150);
  };
}

function makeTemperatures() {
  const settings = run.scales.map((size, scale) => {
    const label = Object.assign(document.createElement("label"), { className: "temperature" });
    const slider = Object.assign(document.createElement("input"), { type: "range", min: 0.05, max: 1.5, step: 0.05 });
    label.append(`${size}×${size}`, slider, document.createElement("output"));
    slider.addEventListener("input", () => {
      const all = state.temperature.map(() => slider.valueAsNumber);
      if (state.together) state.temperature = all;
      else state.temperature[scale] = slider.valueAsNumber;
      showTemperatures();
      redrawAll();
    });
    return label;
  });
  $("temperatures").replaceChildren(...settings);
  $("together-label").hidden = run.scales.length === 1;
}

function showTemperatures() {
  for (const [scale, label] of [...$("temperatures").children].entries()) {
    label.querySelector("input").value = state.temperature[scale];
    label.querySelector("output").textContent = state.temperature[scale].toFixed(2);
  }
}

function showGroups() {
  const text = `${state.groups} of ${numGroups}`;
  $("keep").querySelector("output").textContent = text;
  $("groups").setAttribute("aria-valuetext", text);
}

const redrawAll = later(() => {
  drawSamples();
  drawVariations();
  drawKept();
});

function fill() {
  document.title = `${run.name} · nvae-jax explore`;
  $("name").textContent = run.name;
  $("model").textContent = `${run.model}, step ${run.step}`;
  makeTemperatures();
  showTemperatures();
  $("seed").value = state.seed;
  $("together").checked = state.together;
  $("recalibrate").checked = state.recalibrate;
  for (const [group, scale] of run.groups.entries()) {
    $("group").append(new Option(`${group} (${run.scales[scale]}×${run.scales[scale]})`, group));
  }
  $("group").value = state.group;
  Object.assign($("groups"), { max: numGroups, value: state.groups });
  showGroups();
  for (const button of document.querySelectorAll("[data-needs-choice]")) button.disabled = true;
}

function listen() {
  const on = (id, event, call) => $(id).addEventListener(event, call);
  const samplesLater = later(drawSamples);
  on("seed", "input", () => {
    if (!$("seed").checkValidity() || $("seed").value === "") {
      say("samples", "The seed must be a whole number from 0 to 2147483647.", true);
      return;
    }
    state.seed = $("seed").valueAsNumber;
    samplesLater();
  });
  on("next-seed", "click", () => {
    state.seed = (state.seed + 1) % 2 ** 31;
    $("seed").value = state.seed;
    samplesLater();
  });
  on("together", "change", () => {
    state.together = $("together").checked;
    store();
  });
  on("recalibrate", "change", () => {
    state.recalibrate = $("recalibrate").checked;
    samplesLater();
  });
  const variationsLater = later(drawVariations);
  on("group", "change", () => {
    state.group = Number($("group").value);
    variationsLater();
  });
  $("redraw").querySelector(".again").addEventListener("click", () => {
    state.redrawSeed += 1;
    variationsLater();
  });
  const keptLater = later(drawKept);
  on("groups", "input", () => {
    state.groups = $("groups").valueAsNumber;
    showGroups();
    keptLater();
  });
  $("keep").querySelector(".again").addEventListener("click", () => {
    state.keepSeed += 1;
    keptLater();
  });
  const interpolationLater = later(drawInterpolation);
  for (const end of ["start", "end"]) {
    on(`as-${end}`, "click", () => {
      state[end] = state.chosen;
      interpolationLater();
    });
  }
  on("swap", "click", () => {
    [state.start, state.end] = [state.end, state.start];
    interpolationLater();
  });
  on("png", "click", () => save("png"));
  on("npz", "click", () => save("npz"));
  on("file", "change", async () => {
    await upload($("file").files[0]);
    $("file").value = ""; // the same file may be taken again
  });
  for (const pictures of document.querySelectorAll(".pictures")) {
    pictures.addEventListener("keydown", moveByKey);
  }
  document.addEventListener("paste", (event) => upload(event.clipboardData.files[0]));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    upload(event.dataTransfer.files[0]);
  });
}

fill();
listen();
drawSamples();
if (state.chosen) choose(state.chosen);
drawInterpolation();
