// The page that classifies photos. An engine answers: the service that gave this page, or the model in this browser.
// Photos, names of classes and of files are only ever set as text.
"use strict";
const $ = id => document.getElementById(id);
const {engine: kind, version} = document.documentElement.dataset;
const hasMaps = "maps" in document.documentElement.dataset;
const suffix = version ? "?v=" + version : "";
const TOP = 5, RETRIES = 5, THUMBNAIL = 320, FRAME = 640;

// ---------------------------------------------------------------- engines
// classify(blob) -> {predictions: [{class, probability}], confident, milliseconds}; explain(blob, class) -> image blob.

class Failure extends Error {}

const service = () => {
  let token = sessionStorage.getItem("carnet token") || "";
  const ask = async (path, blob) => {
    for (let tries = 0; ; tries++) {
      const headers = {"Content-Type": blob.type.startsWith("image/") ? blob.type : "application/octet-stream"};
      if (token) headers.Authorization = "Bearer " + token;
      let answer;
      try {
        answer = await fetch(path, {method: "POST", body: blob, headers});
      } catch {
        throw new Failure("The service does not answer. Is it still running?");
      }
      if (answer.ok) return answer;
      if (answer.status === 401) {
        $("token-form").hidden = false;
        $("token").focus();
        token = await new Promise(given => { waiting.push(given); });
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
  const waiting = [];
  $("token-form").onsubmit = event => {
    event.preventDefault();
    sessionStorage.setItem("carnet token", $("token").value);
    $("token-form").hidden = true;
    for (const given of waiting.splice(0)) given($("token").value);
  };
  return {
    parallel: 2,
    ready: Promise.resolve(""),
    async classify(blob) {
      const started = performance.now();
      const {results: [result]} = await (await ask("v1/predict?top_k=" + TOP, blob)).json();
      return {...result, milliseconds: performance.now() - started};
    },
    async explain(blob, name) {
      return (await ask("v1/explain?class=" + encodeURIComponent(name), blob)).blob();
    },
  };
};

const browser = () => {
  const worker = new Worker("model.js" + suffix, {type: "module"});
  const waiting = new Map();
  let number = 0;
  const ask = (what, blob, name) => new Promise((resolve, reject) => {
    waiting.set(++number, {resolve, reject});
    worker.postMessage({number, what, blob, name});
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
      const failed = checks.filter(check => !check.passed);
      document.documentElement.dataset.checks = JSON.stringify(checks);
      return !failed.length ? "" : "This browser does not give the recorded answers for the model's own test pictures ("
        + failed.map(one => one.problem || `${one.picture}: differs by ${one.difference.toPrecision(2)}, allowed ${one.tolerance}`).join("; ")
        + "), so its answers may be wrong. Protection against fingerprinting changes the pixels that a page reads; try without it, or another browser.";
    }),
    classify: blob => ask("classify", blob),
    explain: (blob, name) => ask("explain", blob, name),
  };
};

// ---------------------------------------------------------------- answers

const percent = share => (100 * share).toFixed(1) + "%";
const sentence = answer => (answer.confident === false ? "not sure: " : "")
  + answer.predictions.slice(0, 2).map(one => `${one.class} ${percent(one.probability)}`).join(", ");

const element = (name, className, text = "") => Object.assign(document.createElement(name), {className, textContent: text});

const showAnswer = (place, answer) => {
  const list = element("ol", "bars");
  for (const {class: name, probability} of answer.predictions) {
    const row = element("li", "");
    const bar = element("meter", "");
    Object.assign(bar, {min: 0, max: 1, value: probability});
    bar.setAttribute("aria-hidden", "true");
    row.append(element("span", "name", name), element("span", "share", percent(probability)), bar);
    list.append(row);
  }
  const parts = [list, element("p", "small", `${Math.max(1, Math.round(answer.milliseconds))} ms`)];
  if (answer.confident === false) parts.unshift(element("p", "unsure", "Not sure"));
  place.replaceChildren(...parts);
};

const showFailure = (place, error) => {
  const text = error instanceof Failure ? error.message : "Something failed: " + error.message;
  place.replaceChildren(element("p", "failure", text));
  return text;
};

// ---------------------------------------------------------------- photos

const queue = [];
let running = 0;
const work = async () => {
  if (running >= engine.parallel || !queue.length) return;
  running++;
  await queue.shift()();
  running--;
  work();
};
const inTurn = task => new Promise(done => { queue.push(() => task().finally(done)); work(); });

// A photo may have fifty million pixels, and a page many photos: it keeps a small copy of each for display.
const thumbnail = async blob => {
  try {
    const bitmap = await createImageBitmap(blob, {imageOrientation: "from-image"});
    const scale = Math.min(1, THUMBNAIL / Math.min(bitmap.width, bitmap.height));
    const canvas = Object.assign(document.createElement("canvas"), {
      width: Math.max(1, Math.round(scale * bitmap.width)), height: Math.max(1, Math.round(scale * bitmap.height))});
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    return await new Promise(done => canvas.toBlob(done));
  } catch {
    return null;  // this browser cannot show it; the service may still read it
  }
};

const addPhoto = async (blob, name) => {
  const card = $("card").content.cloneNode(true).firstElementChild;
  const [image, answer, where] = ["img", ".answer", ".where"].map(one => card.querySelector(one));
  let photo = "", heat = "", isGone = false;
  const show = url => { image.hidden = !url; image.src = url; };
  card.querySelector(".file").textContent = name;
  image.alt = name;
  image.hidden = true;
  answer.append(element("p", "small", "…"));
  card.remove_photo = () => {
    isGone = true;
    for (const url of [photo, heat]) if (url) URL.revokeObjectURL(url);
    card.remove();
    $("clear").hidden = !$("photos").children.length;
  };
  card.querySelector(".remove").onclick = () => {
    const next = card.nextElementSibling || card.previousElementSibling;
    card.remove_photo();
    (next ? next.querySelector(".remove") : $("files")).focus();
  };
  $("photos").append(card);
  $("clear").hidden = false;
  await inTurn(async () => {
    if (isGone) return;
    const small = await thumbnail(blob);
    if (small && !isGone) show(photo = URL.createObjectURL(small));
    try {
      const found = await engine.classify(blob);
      showAnswer(answer, found);
      $("said").textContent = `${name}: ${sentence(found)}`;
      where.hidden = !hasMaps;
      where.onclick = async () => {
        const isOn = where.getAttribute("aria-pressed") !== "true";
        try {
          if (isOn && !heat) heat = URL.createObjectURL(await inTurnOf(() => engine.explain(blob, found.predictions[0].class)));
          where.setAttribute("aria-pressed", isOn);
          where.textContent = isOn ? "Show photo" : "Show where";
          image.alt = isOn ? `${name}: where ${found.predictions[0].class} is seen` : name;
          show(isOn ? heat : photo);
        } catch (error) {
          $("said").textContent = showFailure(answer, error);
        }
      };
    } catch (error) {
      $("said").textContent = `${name}: ${showFailure(answer, error)}`;
    }
  });
};

const inTurnOf = async task => {
  let answer, failure;
  await inTurn(() => task().then(one => { answer = one; }, error => { failure = error; }));
  if (failure) throw failure;
  return answer;
};

const addFiles = files => {
  for (const file of files) addPhoto(file, file.name || "pasted image");
};

// ---------------------------------------------------------------- camera

let stream = null;
const stopCamera = () => {
  for (const track of stream?.getTracks() || []) track.stop();
  stream = null;
  $("live").hidden = true;
  $("camera").setAttribute("aria-pressed", "false");
  $("camera").textContent = "Live camera";
};

const frame = () => {
  const {videoWidth: width, videoHeight: height} = $("video");
  const scale = Math.min(1, FRAME / Math.min(width, height));
  const canvas = Object.assign(document.createElement("canvas"), {width: Math.round(scale * width), height: Math.round(scale * height)});
  canvas.getContext("2d").drawImage($("video"), 0, 0, canvas.width, canvas.height);
  return new Promise(done => canvas.toBlob(done, "image/jpeg", .92));
};

const startCamera = async () => {
  try {
    stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment"}, audio: false});
  } catch (error) {
    stream = null;
    $("said").textContent = "";
    const reason = error.name === "NotAllowedError" ? "it was not allowed" : error.name === "NotFoundError" ? "there is none" : error.message;
    note(`The camera cannot be used: ${reason}.`);
    return;
  }
  const mine = stream;
  for (const track of mine.getTracks()) track.onended = () => { if (stream === mine) stopCamera(); };
  $("live").hidden = false;
  $("camera").setAttribute("aria-pressed", "true");
  $("camera").textContent = "Stop the camera";
  $("video").srcObject = mine;
  await $("video").play().catch(() => {});
  let said = "";
  // One frame is under way at a time, so a slow engine sees fewer frames, and never late ones.
  while (stream === mine) {
    await new Promise(requestAnimationFrame);
    if (!$("video").videoWidth || document.hidden) {
      await new Promise(done => setTimeout(done, 200));
      continue;
    }
    try {
      const blob = await frame();
      const answer = await engine.classify(blob);
      if (stream !== mine) return;
      showAnswer($("live-answer"), answer);
      const now = answer.confident === false ? "not sure" : answer.predictions[0].class;
      if (now !== said) $("said").textContent = said = now;
    } catch (error) {
      $("said").textContent = showFailure($("live-answer"), error);
      await new Promise(done => setTimeout(done, 1000));
    }
  }
};

// ---------------------------------------------------------------- the page

const note = text => { $("notes").append(element("li", "", text)); };
let engine;

const start = async () => {
  if (location.protocol === "file:") {
    $("state").textContent = "Browsers run no model from a file. Serve this folder: python -m http.server, then open http://localhost:8000.";
    return;
  }
  engine = kind === "browser" ? browser() : service();
  $("state").textContent = "Loading the model …";
  try {
    const problem = await engine.ready;
    $("state").textContent = problem;
    $("state").hidden = !problem;
    $("state").classList.toggle("warning", !!problem);
  } catch (error) {
    $("state").classList.add("warning");
    $("state").textContent = error.message;
    return;
  }
  $("drop").hidden = false;
  document.documentElement.dataset.ready = "";
  if (!window.isSecureContext) {
    $("camera").disabled = true;
    note(kind === "browser"
      ? "This page was opened without HTTPS: the live camera does not work, nor does the page without a network. Chosen photos are classified."
      : "This page was opened without HTTPS: the live camera does not work. Chosen photos are classified.");
  } else if (!navigator.mediaDevices) {
    $("camera").disabled = true;
    note("This browser gives pages no camera.");
  }

  for (const id of ["files", "photograph"]) $(id).onchange = event => { addFiles(event.target.files); event.target.value = ""; };
  $("camera").onclick = () => { if (stream) stopCamera(); else startCamera(); };
  $("clear").onclick = () => { for (const card of [...$("photos").children]) card.remove_photo(); $("files").focus(); };
  document.addEventListener("paste", event => { addFiles(event.clipboardData.files); });
  document.addEventListener("dragover", event => { event.preventDefault(); $("drop").classList.add("over"); });
  document.addEventListener("dragleave", event => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
  document.addEventListener("drop", event => {
    event.preventDefault();
    $("drop").classList.remove("over");
    addFiles(event.dataTransfer.files);
  });
};

start();
if (kind === "browser" && "serviceWorker" in navigator) {
  navigator.serviceWorker.register("sw.js" + suffix)
    .then(() => navigator.serviceWorker.ready)
    .then(() => { document.documentElement.dataset.offline = ""; })
    .catch(error => note(`This page will not work without a network: ${error.message}`));
}
