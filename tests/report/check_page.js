// Run the script of `carnet check`'s page on stand-ins for its elements, and print what it does as JSON.
const fs = require("fs");
const vm = require("vm");

const element = (dataset = {}) => ({dataset, hidden: true, checked: false, value: "", textContent: "", inner: [],
  querySelectorAll() { return this.inner; }});
const cat = element({classes: "0 "}), dog = element({classes: "1 0 "}), bird = element({classes: "2 "});
const blank = Object.assign(element({kind: "blank"}), {inner: [cat]});
const leak = Object.assign(element({kind: "leak"}), {inner: [dog, bird]});
const ticks = [element({name: '"b.jpg"'}), element({name: '"#a b.jpg"'}), element({name: '"b.jpg"'}), element({names: '["z.jpg", "b.jpg"]'})];
const byId = Object.fromEntries(["number", "kind", "class", "shown", "download", "basket", "filters"].map(id => [id, element()]));
const files = [];
vm.runInNewContext(fs.readFileSync(process.argv[2], "utf8"), {
  document: {
    getElementById: id => byId[id],
    querySelectorAll: selector => selector === ".tick" ? ticks : [blank, leak],
    createElement: () => ({click() { files.push(this.download); }}),
  },
  Blob: class { constructor(parts) { files.push(parts.join("")); } },
  URL: {createObjectURL: () => "blob:", revokeObjectURL: () => {}},
});

const state = () => ({blank: !blank.hidden, leak: !leak.hidden, shown: byId.shown.textContent});
const out = {at_first: state(), basket: !byId.basket.hidden};
byId.class.value = "0"; byId.filters.onchange(); out.cat = state();
byId.class.value = "2"; byId.filters.onchange(); out.bird = state();
byId.kind.value = "leak"; byId.class.value = ""; byId.filters.onchange(); out.kind = state();
ticks[0].checked = true; ticks[0].onchange(); out.together = ticks[2].checked; out.number = byId.number.textContent;
ticks[1].checked = true; ticks[1].onchange(); ticks[3].checked = true; ticks[3].onchange();
byId.download.onclick(); out.files = files;
console.log(JSON.stringify(out));
