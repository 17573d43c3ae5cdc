// Make an image square exactly as Pillow does: the same filters, in the same fixed-point arithmetic, one axis after the
// other. Source: Pillow, `Image.resize` and the rules in carnet/preprocess.py.

const BITS = 22;  // after the point
const STRIP = 1 << 20;  // pixels that are read from an image at a time
export const MAX_ASPECT = 8;

const FILTERS = {
  bilinear: {support: 1, weight: x => Math.max(0, 1 - Math.abs(x))},
  bicubic: {
    support: 2,
    weight: x => {
      x = Math.abs(x);
      const a = -0.5;
      if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
    },
  },
};

// Python rounds halves to the even number.
const round = x => { const down = Math.floor(x), rest = x - down; return rest > .5 || (rest === .5 && down % 2) ? down + 1 : down; };

// For each of `to` places the first of the `from` places that it averages over, their number, and their weights.
const weightsOf = (from, to, {support, weight}) => {
  const scale = from / to, stretch = Math.max(1, scale), reach = support * stretch;
  const most = 2 * Math.ceil(reach) + 1;
  const first = new Int32Array(to), number = new Int32Array(to), weights = new Int32Array(to * most);
  for (let place = 0; place < to; place++) {
    const centre = (place + .5) * scale;
    const low = Math.max(0, Math.trunc(centre - reach + .5)), high = Math.min(from, Math.trunc(centre + reach + .5));
    const exact = [];
    let sum = 0;
    for (let x = low; x < high; x++) {
      exact.push(weight((x - centre + .5) * (1 / stretch)));
      sum += exact[exact.length - 1];
    }
    first[place] = low;
    number[place] = high - low;
    exact.forEach((value, k) => {
      const share = sum ? value / sum : value;
      weights[place * most + k] = Math.trunc((share < 0 ? -.5 : .5) + share * 2 ** BITS);
    });
  }
  return {first, number, weights, most};
};

const clip = sum => { const value = sum >> BITS; return value < 0 ? 0 : value > 255 ? 255 : value; };

// RGBA bytes -> the colours, or grey.
const toChannels = (rgba, channels) => {
  const out = new Uint8Array(rgba.length / 4 * channels);
  for (let i = 0, o = 0; i < rgba.length; i += 4, o += channels) {
    if (channels === 1) out[o] = (rgba[i] * 19595 + rgba[i + 1] * 38470 + rgba[i + 2] * 7471 + 0x8000) >> 16;
    else { out[o] = rgba[i]; out[o + 1] = rgba[i + 1]; out[o + 2] = rgba[i + 2]; }
  }
  return out;
};

// Each row of `width` pixels becomes one of `to` pixels.
const alongRows = (pixels, width, height, {first, number, weights, most}, channels) => {
  const to = first.length, out = new Uint8Array(to * height * channels);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < to; x++) {
      const start = (y * width + first[x]) * channels, place = x * most;
      for (let c = 0; c < channels; c++) {
        let sum = 1 << (BITS - 1);
        for (let k = 0; k < number[x]; k++) sum += pixels[start + k * channels + c] * weights[place + k];
        out[(y * to + x) * channels + c] = clip(sum);
      }
    }
  }
  return out;
};

// Each column becomes one of `to` pixels.
const alongColumns = (pixels, width, {first, number, weights, most}, channels) => {
  const to = first.length, line = width * channels, out = new Uint8Array(to * line);
  for (let y = 0; y < to; y++) {
    const start = first[y] * line, place = y * most;
    for (let i = 0; i < line; i++) {
      let sum = 1 << (BITS - 1);
      for (let k = 0; k < number[y]; k++) sum += pixels[start + k * line + i] * weights[place + k];
      out[y * line + i] = clip(sum);
    }
  }
  return out;
};

// Pillow 13 begins with the columns where that removes much more; the bytes in between are rounded, so the order shows.
const beginsWithColumns = (box, width, height) => box.height > height && box.height - height > 2 * (box.width - width);

const resample = (source, box, width, height, filter, channels) => {
  const across = weightsOf(box.width, width, filter), down = weightsOf(box.height, height, filter);
  if (beginsWithColumns(box, width, height)) {
    const middle = new Uint8Array(box.width * height * channels);
    const strip = Math.max(1, Math.floor(STRIP / box.height));
    for (let left = 0; left < box.width; left += strip) {
      const wide = Math.min(strip, box.width - left);
      const part = alongColumns(toChannels(source.read(box.left + left, box.top, wide, box.height), channels), wide, down, channels);
      for (let y = 0; y < height; y++) {
        middle.set(part.subarray(y * wide * channels, (y + 1) * wide * channels), (y * box.width + left) * channels);
      }
    }
    return alongRows(middle, box.width, height, across, channels);
  }
  const middle = new Uint8Array(width * box.height * channels);
  const strip = Math.max(1, Math.floor(STRIP / box.width));
  for (let top = 0; top < box.height; top += strip) {
    const tall = Math.min(strip, box.height - top);
    const pixels = toChannels(source.read(box.left, box.top + top, box.width, tall), channels);
    middle.set(alongRows(pixels, box.width, tall, across, channels), top * width * channels);
  }
  return alongColumns(middle, width, down, channels);
};

// Python decodes a JPEG at a half, a quarter or an eighth of its size, but no smaller than twice the input: its decoder
// gives the means of blocks. Source: libjpeg, `jidctred.c`; Pillow, `draft`.
export const asDecoded = (source, size) => {
  const scale = Math.min(Math.floor(source.width / (2 * size)), Math.floor(source.height / (2 * size)));
  const side = [8, 4, 2].find(one => scale >= one);
  if (!side) return source;
  const read = (left, top, width, height) => {
    const wide = Math.min(source.width - side * left, side * width), tall = Math.min(source.height - side * top, side * height);
    const pixels = source.read(side * left, side * top, wide, tall), out = new Uint8Array(4 * width * height);
    const sums = new Int32Array(4 * width);
    for (let y = 0; y < height; y++) {
      const rows = Math.min(side, tall - side * y);
      sums.fill(0);
      for (let row = side * y; row < side * y + rows; row++) {
        for (let x = 0, i = 4 * row * wide; x < wide; x++) {
          const o = 4 * Math.floor(x / side);
          for (let c = 0; c < 4; c++) sums[o + c] += pixels[i++];
        }
      }
      for (let x = 0; x < width; x++) {
        const number = rows * Math.min(side, wide - side * x);
        for (let c = 0; c < 4; c++) out[4 * (y * width + x) + c] = (sums[4 * x + c] + (number >> 1)) / number;
      }
    }
    return out;
  };
  return {width: Math.ceil(source.width / side), height: Math.ceil(source.height / side), read};
};

const centre = (width, height, wanted, tall) => ({left: round((width - wanted) / 2), top: round((height - tall) / 2)});

// source: {width, height, read(left, top, width, height) -> RGBA bytes} -> Uint8Array of size * size * channels, which
// are 1 (grey) or 3.
export const toSquare = (source, size, rule, interpolation, channels) => {
  const filter = FILTERS[interpolation];
  let box = {left: 0, top: 0, width: source.width, height: source.height};
  if (rule === "stretch") return resample(source, box, size, size, filter, channels);
  const out = new Uint8Array(size * size * channels);
  const copy = (from, width, fromLeft, fromTop, left, top, wide, tall) => {
    for (let y = 0; y < tall; y++) {
      const start = ((fromTop + y) * width + fromLeft) * channels;
      out.set(from.subarray(start, start + wide * channels), ((top + y) * size + left) * channels);
    }
  };
  if (rule === "pad") {
    const long = Math.max(box.width, box.height);
    const [width, height] = [box.width, box.height].map(side => Math.max(1, round(size * side / long)));
    const small = resample(source, box, width, height, filter, channels);
    copy(small, width, 0, 0, Math.floor((size - width) / 2), Math.floor((size - height) / 2), width, height);
    return out;
  }
  const short = Math.min(box.width, box.height);
  if (Math.max(box.width, box.height) > MAX_ASPECT * short) {
    const [width, height] = [box.width, box.height].map(side => Math.min(side, MAX_ASPECT * short));
    box = {...centre(box.width, box.height, width, height), width, height};
  }
  const [width, height] = [box.width, box.height].map(side => Math.max(size, Math.floor(size * side / short)));
  const {left, top} = centre(width, height, size, size);
  copy(resample(source, box, width, height, filter, channels), width, left, top, 0, 0, size, size);
  return out;
};
