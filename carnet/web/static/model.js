// The model inside the browser: a worker that decodes a photo, makes it what the network takes, and computes.
// The page asks {number, what, blob} and gets {number, answer} or {number, error}.
const suffix = new URL(self.location).search;
const fetched = async path => {
  const answer = await fetch(path + suffix);
  if (!answer.ok) throw new Error(`${path} cannot be loaded (${answer.status})`);
  return answer;
};
const FIGURE_SIDE = 448, WARM = [255, 214, 60], HOT = [205, 20, 30], OPACITY = 0.72;
const TOP = 5;

const load = async () => {
  // All three at once; the runtime's file is the largest.
  const [about, model, runtime, ort, resize] = await Promise.all([
    fetched("model.json").then(answer => answer.json()),
    fetched("model.onnx").then(answer => answer.arrayBuffer()),
    fetched("ort/ort.wasm").then(answer => answer.arrayBuffer()),
    import("./ort/ort.js" + suffix),
    import("./resize.js" + suffix),
  ]);
  Object.assign(ort.env.wasm, {wasmBinary: runtime, numThreads: 1, proxy: false});
  const session = await ort.InferenceSession.create(model, {executionProviders: ["wasm"]});
  return {about, session, ort, ...resize};
};
const loaded = load().catch(error => { throw new Error(`the model cannot be loaded: ${error.message}`); });

// ---------------------------------------------------------------- decoding

// A profile or a gamma in a file would change its colours in some browsers; the model was evaluated without.
const withoutProfile = bytes => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const parts = [];
  let kept = 0, place;
  if (bytes[0] === 0xff && bytes[1] === 0xd8) {
    for (place = 2; place + 4 <= bytes.length && bytes[place] === 0xff && bytes[place + 1] !== 0xda;) {
      const end = place + 2 + view.getUint16(place + 2);
      if (bytes[place + 1] === 0xe2) { parts.push(bytes.subarray(kept, place)); kept = end; }
      place = end;
    }
  } else if (bytes.length > 8 && view.getUint32(0) === 0x89504e47) {
    for (place = 8; place + 12 <= bytes.length;) {
      const end = place + 12 + view.getUint32(place);
      const name = String.fromCharCode(...bytes.subarray(place + 4, place + 8));
      if (["iCCP", "gAMA", "cHRM", "sRGB", "cICP"].includes(name)) { parts.push(bytes.subarray(kept, place)); kept = end; }
      place = end;
    }
  } else if (bytes.length > 12 && view.getUint32(0) === 0x52494646 && view.getUint32(8) === 0x57454250) {
    // The container states its size, and which parts it has; a part of an unknown name is skipped.
    for (place = 12; place + 8 <= bytes.length; place += 8 + view.getUint32(place + 4, true) + view.getUint32(place + 4, true) % 2) {
      if (view.getUint32(place) === 0x49434350) bytes.set([0x58, 0x58, 0x58, 0x58], place);
    }
  }
  return kept ? new Blob([...parts, bytes.subarray(kept)]) : new Blob([bytes]);
};

const decode = async blob => {
  const {about, asDecoded} = await loaded;
  let bitmap, isJpeg;
  try {
    const bytes = new Uint8Array(await blob.arrayBuffer());
    isJpeg = bytes[0] === 0xff && bytes[1] === 0xd8;
    bitmap = await createImageBitmap(withoutProfile(bytes), {imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none"});
  } catch {
    throw new Error("this browser cannot read it as an image; JPEG, PNG and WebP are read everywhere");
  }
  // A part at a time: phones draw nothing on a canvas of many megapixels.
  let canvas, context;
  const source = {
    width: bitmap.width,
    height: bitmap.height,
    read(left, top, width, height) {
      if (!canvas || canvas.width !== width || canvas.height < height) {
        canvas = new OffscreenCanvas(width, height);
        context = canvas.getContext("2d", {willReadFrequently: true});
        context.imageSmoothingEnabled = false;
      }
      // Transparent parts become white.
      context.fillStyle = "#fff";
      context.fillRect(0, 0, width, height);
      context.drawImage(bitmap, left, top, width, height, 0, 0, width, height);
      return context.getImageData(0, 0, width, height).data;
    },
  };
  return {...isJpeg ? asDecoded(source, about.image_size) : source, close: () => bitmap.close()};
};

// ---------------------------------------------------------------- answers

const run = async (source, outputs) => {
  const {about, session, ort, toSquare} = await loaded;
  const {image_size: side, resize, interpolation, in_channels: channels} = about;
  const pixels = toSquare(source, side, resize, interpolation, channels);
  return session.run({pixels: new ort.Tensor("uint8", pixels, [1, side, side, channels])}, outputs);
};

const probabilitiesOf = async blob => {
  const source = await decode(blob);
  try {
    return (await run(source, ["probabilities"])).probabilities.data;
  } finally {
    source.close();
  }
};

const toAnswer = ({classes, threshold}, probabilities) => {
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a] || a - b);
  const predictions = order.slice(0, TOP).map(k => ({class: classes[k], probability: probabilities[k]}));
  return {predictions, confident: threshold === null ? null : predictions[0].probability >= threshold};
};

const verify = async () => {
  const checks = [];
  for (const {picture, file, probabilities, tolerance} of (await loaded).about.tests) {
    try {
      const found = await probabilitiesOf(new Blob([Uint8Array.from(atob(file), sign => sign.charCodeAt(0))]));
      const difference = Math.max(...probabilities.map((p, k) => Math.abs(p - found[k])));
      checks.push({picture, difference, tolerance, passed: difference <= tolerance});
    } catch (error) {
      checks.push({picture, difference: 1, tolerance, passed: false, problem: `${picture}: ${error.message}`});
    }
  }
  return checks;
};

// Where a class is seen, drawn as `carnet.explanation.draw_heat` does.
const explain = async blob => {
  const {about, toSquare} = await loaded;
  const {classes, map_centres: centres, image_size: size, resize, interpolation, in_channels: channels} = about;
  const source = await decode(blob);
  try {
    const {probabilities: {data: probabilities}, class_maps: maps} = await run(source, ["probabilities", "class_maps"]);
    const label = probabilities.indexOf(Math.max(...probabilities));
    const [, , height, width] = maps.dims, places = height * width;
    const heat = new Float64Array(places);
    for (let i = 0; i < places; i++) {
      let mean = 0;
      for (let k = 0; k < classes.length; k++) mean += maps.data[k * places + i] / classes.length;
      heat[i] = maps.data[label * places + i] - mean;
    }
    const side = Math.max(FIGURE_SIDE, size);
    const [down, across] = centres.map(line => interpolationOf(line, size, side));
    const most = Math.max(1e-6, ...heat);
    const photo = toSquare(source, side, resize, interpolation, channels);
    const rgba = new Uint8ClampedArray(4 * side * side);
    const row = new Float64Array(width);
    for (let y = 0; y < side; y++) {
      row.fill(0);
      for (const [place, weight] of down[y]) for (let x = 0; x < width; x++) row[x] += weight * heat[place * width + x];
      for (let x = 0; x < side; x++) {
        let value = 0;
        for (const [place, weight] of across[x]) value += weight * row[place];
        const share = Math.min(1, Math.max(0, value / most)), opacity = OPACITY * share ** 1.5;
        const i = channels * (y * side + x), o = 4 * (y * side + x);
        const grey = channels === 1 ? photo[i] : (photo[i] * 19595 + photo[i + 1] * 38470 + photo[i + 2] * 7471 + 0x8000) >> 16;
        for (let c = 0; c < 3; c++) rgba[o + c] = (1 - opacity) * grey + opacity * ((1 - share) * WARM[c] + share * HOT[c]);
        rgba[o + 3] = 255;
      }
    }
    const canvas = new OffscreenCanvas(side, side);
    canvas.getContext("2d").putImageData(new ImageData(rgba, side, side), 0, 0);
    return canvas.convertToBlob();
  } finally {
    source.close();
  }
};

// For each pixel of a figure the places of a map that it lies between, with their weights; none beyond the map's reach.
const interpolationOf = (places, size, side) => {
  const reach = places.length > 1 ? (places.at(-1) - places[0]) / (places.length - 1) : size;
  return Array.from({length: side}, (_, x) => {
    const at = (x + .5) * size / side - .5;
    if (at < places[0] - reach || at > places.at(-1) + reach) return [];
    if (at <= places[0]) return [[0, 1]];
    if (at >= places.at(-1)) return [[places.length - 1, 1]];
    const next = places.findIndex(place => place > at);
    const weight = (at - places[next - 1]) / (places[next] - places[next - 1]);
    return [[next - 1, 1 - weight], [next, weight]];
  });
};

const answer = async ({what, blob}) => {
  if (what === "verify") return verify();
  if (what === "explain") return explain(blob);
  const {about} = await loaded;
  const started = performance.now();
  const probabilities = await probabilitiesOf(blob);
  return {...toAnswer(about, probabilities), milliseconds: performance.now() - started};
};

self.onmessage = async ({data}) => {
  try {
    self.postMessage({number: data.number, answer: await answer(data)});
  } catch (error) {
    self.postMessage({number: data.number, error: error.message});
  }
};
