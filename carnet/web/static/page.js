// The page that classifies photos. An engine answers: the service that gave this page, or the model in this browser.
// Photos, names of classes and of files are only ever set as text.
"use strict";
const $ = id => document.getElementById(id);
const {engine: kind, version} = document.documentElement.dataset;
const hasMaps = "maps" in document.documentElement.dataset, isLocked = "locked" in document.documentElement.dataset;
const suffix = version ? "?v=" + version : "";
const TOP = 5, RETRIES = 5, THUMBNAIL = 320, FRAME = 640;
const FEW = 3;  // photos whose answers are read out one by one
const STEADY = 1000;  // milliseconds for which the camera shows one class before it is read out

// ---------------------------------------------------------------- engines
// classify(blob) -> {predictions: [{class, probability}], confident, milliseconds}; explain(blob) -> a blob, the photo
// with heat where its class is seen.

class Failure extends Error {}

// Browsers that keep nothing for pages throw here.
const stored = () => { try { return sessionStorage.getItem("carnet token") || ""; } catch { return ""; } };
const store = token => { try { sessionStorage.setItem("carnet token", token); } catch { /* asked for again */ } };

const service = () => {
  let token = stored();
  const waiting = [];
  const askForToken = why => {
    $("token-state").textContent = why;
    if ($("token-form").hidden) {
      $("token-form").hidden = false;
      $("token").focus();
    }
    return new Promise(given => { waiting.push(given); });
  };
  $("token-form").onsubmit = event => {
    event.preventDefault();
    token = $("token").value;
    store(token);
    $("token-form").hidden = true;
    for (const given of waiting.splice(0)) given();
  };

  const ask = async (path, blob) => {
    const body = blob && await blob.arrayBuffer().catch(() => { throw new Failure("This file cannot be read."); });
    for (let tries = 0; ; tries++) {
      const used = token, started = performance.now();
      let answer;
      try {
        const headers = {"Content-Type": "application/octet-stream", ...used && {Authorization: "Bearer " + used}};
        answer = await fetch(path, blob ? {method: "POST", body, headers} : {headers});
      } catch {
        throw new Failure("The service does not answer. Is it still running?");
      }
      if (answer.ok) return {answer, milliseconds: performance.now() - started};
      if (answer.status === 401) {
        if (token === used) await askForToken(used ? "This token is not accepted." : "This service asks for a token.");
        continue;
      }
      if (answer.status === 503 && tries < RETRIES) {
        await new Promise(done => setTimeout(done, 1000 * (Number(answer.headers.get("Retry-After")) || 1)));
        continue;
      }
      const {error} = await answer.json().catch(() => ({error: "the service answered " + answer.status}));
      throw new Failure(error);
    }
  };
  return {
    parallel: 2,
    // Where a token protects the classes, the page asks for it at once, and names them then.
    ready: isLocked ? ask("v1/model").then(({answer}) => answer.json()).then(({classes}) => {
      $("summary").textContent = `${classes.length.toLocaleString("en")} classes: ${classes.slice(0, TOP).join(", ")}${classes.length > TOP ? " …" : ""}. `;
      return "";
    }) : Promise.resolve(""),
    async classify(blob) {
      const {answer, milliseconds} = await ask("v1/predict?top_k=" + TOP, blob);
      return {...(await answer.json()).results[0], milliseconds};
    },
    explain: async blob => (await ask("v1/explain", blob)).answer.blob(),
  };
};

const browser = () => {
  const worker = new Worker("model.js" + suffix, {type: "module"});
  const waiting = new Map();
  let number = 0;
  const ask = (what, blob) => new Promise((resolve, reject) => {
    waiting.set(++number, {resolve, reject});
    worker.postMessage({number, what, blob});
  });
  worker.onmessage = ({data}) => {
    const {resolve, reject} = waiting.get(data.number);
    waiting.delete(data.number);
    if (data.error) reject(new Failure(data.error)); else resolve(data.answer);
  };
  worker.onerror = () => {
    for (const {reject} of waiting.values()) reject(new Failure("This browser cannot run the model. A newer one can."));
    waiting.clear();
  };
  return {
    parallel: 1,
    // The model's own test pictures: does this browser compute what was evaluated?
    ready: ask("verify").then(checks => {
      document.documentElement.dataset.checks = JSON.stringify(checks);
      const failed = checks.filter(check => !check.passed);
      return !failed.length ? "" : "This browser does not give the recorded answers for the model's own test pictures ("
        + failed.map(one => one.problem || `${one.picture}: differs by ${one.difference.toPrecision(2)}, allowed ${one.tolerance}`).join("; ")
        + "), so its answers may be wrong. The model may have been damaged on its way here; or this browser changes the pixels that a page reads, to protect against fingerprinting. Another browser shows which.";
    }),
    classify: blob => ask("classify", blob),
    explain: blob => ask("explain", blob),
  };
};

// ---------------------------------------------------------------- answers

const percent = share => (100 * share).toFixed(1) + "%";
const sentence = answer => (answer.confident === false ? "not sure: " : "")
  + answer.predictions.slice(0, 2).map(one => `${one.class} ${percent(one.probability)}`).join(", ");
const say = text => { if ($("said").textContent !== text) $("said").textContent = text; };

const element = (name, className, text = "") => Object.assign(document.createElement(name), {className, textContent: text});

const showAnswer = (place, answer) => {
  const list = element("ol", "bars");
  for (const {class: name, probability} of answer.predictions) {
    const bar = Object.assign(element("meter", ""), {min: 0, max: 1, value: probability});
    bar.setAttribute("aria-hidden", "true");
    const row = element("li", "");
    row.append(element("span", "name", name), element("span", "share", percent(probability)), bar);
    list.append(row);
  }
  const parts = [list, element("p", "small", `${Math.max(1, Math.round(answer.milliseconds))} ms`)];
  if (answer.confident === false) parts.unshift(element("p", "unsure", "Not sure"));
  place.replaceChildren(...parts);
};

const reasonOf = error => {
  const text = error instanceof Failure ? error.message : "something failed: " + error.message;
  return text.charAt(0).toUpperCase() + text.slice(1);
};

// ---------------------------------------------------------------- photos

const queue = [];
let running = 0;
const work = () => {
  while (running < engine.parallel && queue.length) {
    running++;
    queue.shift()().finally(() => { running--; work(); });
  }
};
const inTurn = (task, isFirst) => new Promise((resolve, reject) => {
  queue[isFirst ? "unshift" : "push"](() => task().then(resolve, reject));
  work();
});

// A photo may have fifty million pixels, and a page many photos: it shows a small copy of each.
const drawSmall = async (blob, canvas) => {
  try {
    const bitmap = await createImageBitmap(blob, {imageOrientation: "from-image"});
    const scale = Math.min(1, THUMBNAIL / Math.min(bitmap.width, bitmap.height));
    canvas.width = Math.max(1, Math.round(scale * bitmap.width));
    canvas.height = Math.max(1, Math.round(scale * bitmap.height));
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
  } catch { /* this browser cannot show it; the service may still read it */ }
};

let numDone = 0, numAdded = 0;

const addPhoto = async (blob, name) => {
  const card = $("card").content.cloneNode(true).firstElementChild;
  const [canvas, heat, answer, where, remove] = ["canvas", "img", ".answer", ".where", ".remove"].map(one => card.querySelector(one));
  let isGone = false;
  card.querySelector(".file").textContent = name;
  remove.setAttribute("aria-label", "Remove " + name);
  where.setAttribute("aria-label", "Show where in " + name);
  answer.append(element("p", "small", "…"));
  card.removePhoto = () => {
    isGone = true;
    if (heat.src) URL.revokeObjectURL(heat.src);
    card.remove();
    $("clear").hidden = !$("photos").children.length;
  };
  remove.onclick = () => {
    const next = card.nextElementSibling || card.previousElementSibling;
    card.removePhoto();
    (next ? next.querySelector(".remove") : $("files")).focus();
  };
  where.onclick = async () => {
    if (where.getAttribute("aria-busy") === "true") return;
    where.setAttribute("aria-busy", "true");
    try {
      if (!heat.src) {
        const figure = await inTurn(() => isGone ? Promise.resolve(null) : engine.explain(blob), true);
        if (isGone) return;
        heat.src = URL.createObjectURL(figure);
      }
      const isOn = where.getAttribute("aria-pressed") !== "true";
      where.setAttribute("aria-pressed", isOn);
      heat.hidden = !isOn;
      canvas.hidden = isOn;
    } catch (error) {
      answer.append(element("p", "failure", reasonOf(error)));
      say(`${name}: ${reasonOf(error)}`);
    } finally {
      where.removeAttribute("aria-busy");
    }
  };
  $("photos").append(card);
  $("clear").hidden = false;

  const isOneOfFew = numAdded < FEW;
  let text;
  try {
    const found = await inTurn(async () => {
      if (isGone) return null;
      await drawSmall(blob, canvas);
      return engine.classify(blob);
    });
    if (!found || isGone) return;
    showAnswer(answer, found);
    where.hidden = !hasMaps;
    heat.alt = `Where ${found.predictions[0].class} is seen`;
    text = `${name}: ${sentence(found)}`;
  } catch (error) {
    if (isGone) return;
    answer.replaceChildren(element("p", "failure", reasonOf(error)));
    text = `${name}: ${reasonOf(error)}`;
  } finally {
    numDone++;
  }
  if (isOneOfFew || numDone === numAdded) say(text);
};

const addFiles = files => {
  if (!engine || !("ready" in document.documentElement.dataset)) return say("The model is not ready yet.");
  if (!files.length) return say("That is no photo.");
  numAdded = numDone = 0;
  for (const file of files) {
    addPhoto(file, file.name || "pasted image");
    numAdded++;
  }
};

// ---------------------------------------------------------------- camera

let stream = null, isOpening = false;
const picture = document.createElement("canvas");  // one for all frames: phones free canvases late

const stopCamera = () => {
  for (const track of stream?.getTracks() || []) track.stop();
  stream = null;
  $("video").srcObject = null;
  $("live-answer").replaceChildren();
  $("live").hidden = true;
  $("camera").textContent = "Live camera";
};

const frame = () => {
  const {videoWidth: width, videoHeight: height} = $("video");
  const scale = Math.min(1, FRAME / Math.min(width, height));
  picture.width = Math.round(scale * width);
  picture.height = Math.round(scale * height);
  picture.getContext("2d").drawImage($("video"), 0, 0, picture.width, picture.height);
  return new Promise((resolve, reject) => {
    picture.toBlob(blob => blob ? resolve(blob) : reject(new Failure("This browser gives no frame of the camera.")), "image/jpeg", .92);
  });
};

const openCamera = async () => {
  if (isOpening) return;
  isOpening = true;
  try {
    stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment"}, audio: false});
    $("camera-state").textContent = "";
  } catch (error) {
    const reason = {NotAllowedError: "it was not allowed", NotFoundError: "there is none"}[error.name] || error.message;
    $("camera-state").textContent = `The camera cannot be used: ${reason}.`;
  } finally {
    isOpening = false;
  }
  if (stream) watch(stream);
};

const watch = async mine => {
  for (const track of mine.getTracks()) {
    track.onended = () => { if (stream === mine) { stopCamera(); $("camera-state").textContent = "The camera has stopped."; } };
  }
  $("live").hidden = false;
  $("camera").textContent = "Stop the camera";
  $("video").srcObject = mine;
  await $("video").play().catch(() => {});
  let shown = "", since = 0;
  // One frame is under way at a time, so a slow engine sees fewer frames, and never late ones.
  while (stream === mine) {
    // A page in the background draws no frames, and waits here.
    await new Promise(requestAnimationFrame);
    if (!$("video").videoWidth) continue;
    let text;
    try {
      const answer = await engine.classify(await frame());
      if (stream !== mine) return;
      showAnswer($("live-answer"), answer);
      text = answer.confident === false ? "not sure" : answer.predictions[0].class;
    } catch (error) {
      if (stream !== mine) return;
      text = reasonOf(error);
      $("live-answer").replaceChildren(element("p", "failure", text));
      await new Promise(done => setTimeout(done, 1000));
    }
    if (text !== shown) [shown, since] = [text, performance.now()];
    else if (performance.now() - since > STEADY) say(text);
  }
};

// ---------------------------------------------------------------- the page

const note = text => { $("notes").append(element("li", "", text)); };
let engine = null;

const warn = text => {
  $("state").textContent = text;
  $("state").classList.add("warning");
};

const start = async () => {
  if (location.protocol === "file:") {
    return warn("Browsers run no model from a file. Serve this folder: python -m http.server, then open http://localhost:8000, or any web host.");
  }
  $("state").textContent = "Loading the model …";
  try {
    engine = kind === "browser" ? browser() : service();
    const problem = await engine.ready;
    if (problem) warn(problem); else $("state").hidden = true;
  } catch (error) {
    return warn(reasonOf(error));
  }
  $("drop").hidden = false;
  document.documentElement.dataset.ready = "";
  const isOffered = window.isSecureContext && navigator.mediaDevices;
  $("camera").disabled = !isOffered;
  if (!window.isSecureContext) {
    note("This page was opened without HTTPS: the live camera does not work" + (kind === "browser" ? ", nor does the page without a network" : "")
      + ". Chosen photos are classified.");
  } else if (!isOffered) {
    note("This browser gives pages no camera.");
  }
  if (kind === "browser" && "serviceWorker" in navigator) keepForOffline();
};

// After the model is there: both ask for the same files.
const keepForOffline = async () => {
  const failed = why => note(`This page will not work without a network: ${why}.`);
  try {
    const registration = await navigator.serviceWorker.register("sw.js" + suffix);
    const worker = registration.installing || registration.waiting;
    worker?.addEventListener("statechange", () => {
      if (worker.state === "redundant" && !registration.active) failed("its files could not be kept");
    });
    await navigator.serviceWorker.ready;
    document.documentElement.dataset.offline = "";
  } catch (error) {
    failed(error.message);
  }
};

for (const id of ["files", "photograph"]) $(id).onchange = event => { addFiles(event.target.files); event.target.value = ""; };
$("camera").onclick = () => { if (stream) stopCamera(); else openCamera(); };
$("clear").onclick = () => { for (const card of [...$("photos").children]) card.removePhoto(); $("files").focus(); };
document.addEventListener("paste", event => { if (event.clipboardData.files.length) addFiles(event.clipboardData.files); });
// From the start: a browser leaves a page for a photo that is dropped on it.
document.addEventListener("dragover", event => { event.preventDefault(); $("drop").classList.add("over"); });
document.addEventListener("dragleave", event => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
document.addEventListener("drop", event => {
  event.preventDefault();
  $("drop").classList.remove("over");
  addFiles(event.dataTransfer.files);
});
start();
