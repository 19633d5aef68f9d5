// The atlas: pictures of one or several attention stores, what every patch attends to, and the dataset's statistics.
//
// One module for the page that `attlas view` serves, the single file and the notebook. They differ in their source
// alone: `get(path)` gives an answer's bytes, `url(path)` what an <img> can load; api.py lists the paths.

const MAGMA = "AAAEAQAFAQEGAQEIAgEJAgILAgINAwMPAwMSBAQUBQQWBgUYBgUaBwYcCAceCQcgCggiCwkkDAkmDQopDgsrEAstEQwvEg0xEw00FA42FQ44Fg87GA89GRA/GhBCHBBEHRFHHhFJIBFLIRFOIhFQJBJTJRJVJxJYKRFaKhFcLBFfLRFhLxFjMRFlMxBnNBBpNhBrOBBsOQ9uOw9wPQ9xPw9yQA90Qg91RA92RRB3RxB4SRB4ShB5TBF6ThF7TxJ7URJ8UhN8VBN9VhR9VxV+WRV+WhZ+XBZ/XRd/Xxh/YBiAYhmAZBqAZRqAZxuAaByBahyBax2BbR2Bbh6BcB+Bch+BcyCBdSGBdiGBeCKBeSKCeyOCfCOCfiSCgCWCgSWBgyaBhCaBhieBiCeBiSiBiymBjCmBjiqBkCqBkSuBkyuAlCyAliyAmC2AmS2Amy5/nC5/ni9/oC9/oTB+ozB+pTF+pjF9qDJ9qjN9qzN8rTR8rjR7sDV7sjV7szZ6tTZ6tzd5uDd5ujh4vDl4vTl3vzp3wDp2wjt1xDx1xTx0xz1zyD5zyj5yzD9xzUBxz0Bw0EFv0kJv00Nu1URt1kVs2EVs2UZr20dq3Ehp3klo30po4Exn4k1m405l5E9k5VBk51Jj6FNi6VRi6lZh61dg7Fhg7Vpf7lte711e8F9e8WBd8mJd8mRc82Vc9Gdc9Glc9Wtc9mxc9m5c93Bc93Jc+HRc+HZc+Xhd+Xld+Xtd+n1e+n9e+oFf+4Nf+4Vg+4dh/Ilh/Ipi/Ixj/I5k/JBl/ZJm/ZRn/ZZo/Zhp/Zpq/Ztr/p1s/p9t/qFu/qNv/qVx/qdy/qlz/qp0/qx2/q53/rB4/rJ6/rR7/rZ8/rd+/rl//ruB/r2C/r+E/sGF/sKH/sSI/saK/siM/sqN/syP/s2Q/s+S/tGU/tOV/tWX/teZ/tia/dqc/dye/d6g/eCh/eKj/eOl/eWn/eep/emq/eus/Oyu/O6w/PCy/PK0/PS2/Pa4/Pe5/Pm7/Pu9/P2/";
const EAGER = 96 << 20; // bytes of a picture's attention up to which all layers are loaded at once
const KEPT = 4; // pictures whose attention stays in memory
const CELL = 124; // least width of a picture in the grid, pixels
const TALLEST = 12e6; // browsers limit an element's height; beyond, scrolling is scaled

// -- small things -----------------------------------------------------------------------------------------------------

function h(tag, properties = {}, ...children) {
  const svg = ["svg", "g", "circle", "line", "path", "text", "title"].includes(tag) && properties.svg !== false;
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false || name === "svg") continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "text") element.textContent = value;
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const digits = (x) =>
  x === null || !Number.isFinite(x) ? "–" : Math.abs(x) >= 100 ? x.toFixed(0) : Math.abs(x) >= 10 ? x.toFixed(1)
    : Math.abs(x) >= 1e-4 || x === 0 ? String(Number(x.toPrecision(3))) : x.toExponential(1);
const about = (x) => `≈\u00a0${digits(Number(x.toPrecision(2)))}`; // what codes tell
const percent = (x) => `${x >= 0.0995 ? (100 * x).toFixed(0) : (100 * x).toFixed(1)}\u00a0%`;
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

const LUT = (() => {
  const raw = Uint8Array.from(atob(MAGMA), (c) => c.charCodeAt(0));
  const table = new Uint32Array(256); // as ImageData has it: little-endian RGBA
  for (let i = 0; i < 256; i++) table[i] = (raw[3 * i] | (raw[3 * i + 1] << 8) | (raw[3 * i + 2] << 16) | 0xff000000) >>> 0;
  return table;
})();

function half(bits) {
  const exponent = (bits >> 10) & 31, fraction = bits & 1023, sign = bits >> 15 ? -1 : 1;
  return sign * (exponent === 0 ? fraction * 2 ** -24 : exponent === 31 ? (fraction ? NaN : Infinity)
    : (1 + fraction / 1024) * 2 ** (exponent - 15));
}

function unpack(buffer) {
  const end = 4 + new DataView(buffer).getUint32(0, true);
  return [JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, end - 4))), buffer, end];
}

const json = (buffer) => JSON.parse(new TextDecoder().decode(buffer));

// -- sources ----------------------------------------------------------------------------------------------------------

function served() {
  return {
    linked: true,
    url: async (path) => path,
    async get(path) {
      const answer = await fetch(path);
      if (!answer.ok || answer.headers.get("Content-Type").startsWith("text/plain")) throw new Error((await answer.text()).trim());
      return answer.arrayBuffer();
    },
  };
}

function embedded() {
  const find = (path) => {
    const found = document.querySelector(`script[data-path="${CSS.escape(path)}"]`);
    if (!found) throw new Error("this is not in the file: `attlas view STORE` shows all of a store");
    return found;
  };
  return {
    linked: true,
    url: async (path) => `data:image/jpeg;base64,${find(path).textContent}`,
    async get(path) {
      const element = find(path);
      if (element.dataset.why) throw new Error(element.dataset.why);
      const bytes = Uint8Array.from(atob(element.textContent), (c) => c.charCodeAt(0));
      if (!("deflate" in element.dataset)) return bytes.buffer;
      return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
    },
  };
}

function messages(model) {
  const waiting = new Map();
  let last = 0;
  model.on("msg:custom", (message, buffers) => {
    const [resolve, reject] = waiting.get(message.id) ?? [];
    waiting.delete(message.id);
    if (message.why !== undefined) reject?.(new Error(message.why));
    else if (resolve) {
      const view = buffers[0];
      resolve(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
    }
  });
  const get = (path) => new Promise((resolve, reject) => {
    waiting.set(++last, [resolve, reject]);
    model.send({ id: last, path });
  });
  return { linked: false, get, url: async (path) => URL.createObjectURL(new Blob([await get(path)], { type: "image/jpeg" })) };
}

// -- attention of one picture -----------------------------------------------------------------------------------------

class Rows {
  // Attention of one layer: heads, and of every head its rows, whole or those of the prefix tokens alone.
  constructor(buffer) {
    const [header, data, start] = unpack(buffer);
    Object.assign(this, header);
    const count = this.heads * this.rows, halves = start + 4 * this.rows, front = halves + 2 * count, codes = front + 2 * count * this.prefix;
    this.patches = this.keys - this.prefix;
    this.most = new Float32Array(data, start, this.rows);
    this.scale = Float32Array.from(new Uint16Array(data, halves, count), half);
    this.front = Float32Array.from(new Uint16Array(data, front, count * this.prefix), half);
    this.codes = new (this.signed ? Int8Array : Uint8Array)(data, codes, count * this.patches);
    const step = this.patches, each = this.rows * step; // they are differences from the query before
    for (let i = step; i < this.codes.length; i++) if (i % each >= step) this.codes[i] += this.codes[i - step];
  }

  at(head, query, key) {
    const row = head * this.rows + query;
    if (key < this.prefix) return this.front[row * this.prefix + key];
    const share = this.codes[row * this.patches + key - this.prefix] / this.levels;
    return this.scale[row] * share * Math.abs(share);
  }

  // What `queries` attend to, their mean, or with `from` who attends to them: one number a token, or null. `most` is
  // the largest of a patch, where it is known and not only as well as codes tell.
  line(head, queries, from) {
    const found = new Float32Array(this.keys);
    if (from) {
      if (this.rows < this.keys) return null;
      for (const key of queries) for (let q = 0; q < this.rows; q++) found[q] += this.at(head, q, key) / queries.length;
      return found;
    }
    for (const query of queries) {
      if (query >= this.rows) return null;
      const row = head * this.rows + query, first = row * this.patches;
      const factor = this.scale[row] / (this.levels * this.levels * queries.length);
      for (let key = 0; key < this.prefix; key++) found[key] += this.front[row * this.prefix + key] / queries.length;
      for (let patch = 0; patch < this.patches; patch++) {
        const code = this.codes[first + patch];
        found[this.prefix + patch] += factor * code * Math.abs(code);
      }
    }
    if (queries.length === 1 && !this.signed) found.most = this.scale[head * this.rows + queries[0]];
    return found;
  }

  // The mean of such lines of some heads, of which the largest value is known for all of them together.
  mean(lines, queries, from) {
    if (lines.length === 1) return lines[0];
    const found = new Float32Array(this.keys);
    for (const line of lines) for (let i = 0; i < found.length; i++) found[i] += line[i] / lines.length;
    if (lines.length === this.heads && queries.length === 1 && !from) found.most = this.most[queries[0]];
    return found;
  }
}

// -- the atlas --------------------------------------------------------------------------------------------------------

class Atlas {
  constructor(root, source) {
    Object.assign(this, { root, source, rows: new Map(), maps: new Map(), columns: new Map(), busy: 0 });
    this.state = {
      view: "grid", item: 0, depth: 1, heads: [], at: null, from: false, map: "attention", opacity: 0.7, mass: 1,
      overlay: true, common: false, smooth: false, query: "", sort: "", down: false, thumbs: "pictures", answer: "", panel: null,
    };
    this.hover = null;
  }

  async start() {
    this.manifest = json(await this.load("manifest"));
    this.stores = this.manifest.stores;
    this.listed = Array.isArray(this.manifest.images) ? this.manifest.images : null;
    this.count = this.listed ? this.listed.length : this.manifest.images;
    this.order = null;
    this.state.heads = this.stores.map(() => null);
    this.state.sort = "";
    this.build();
    if (this.source.linked) this.readHash();
    this.show();
    this.update();
  }

  // Counts what is on its way, for whoever waits for the page to be complete.
  async load(path) {
    this.root.dataset.busy = String(++this.busy);
    try {
      return await this.source.get(path);
    } finally {
      this.root.dataset.busy = String(--this.busy);
    }
  }

  image(item) {
    return this.listed ? this.listed[item] : item;
  }

  // The image's index in a store, -1 where that does not have it.
  async imageIn(s, item) {
    if (s === 0) return this.image(item);
    this.pairs ??= [];
    this.pairs[s] ??= this.load(`pairs/${s}`).then((buffer) => new Int32Array(buffer, unpack(buffer)[2]));
    return (await this.pairs[s])[item];
  }

  column(name, s = 0) {
    const key = `column/${s}/${encodeURIComponent(name)}`;
    if (!this.columns.has(key)) {
      this.columns.set(key, this.load(key).then((buffer) => {
        const [header, data, start] = unpack(buffer);
        if (header.texts) return { texts: header.texts, codes: new Uint32Array(data, start), at(i) { return this.texts[this.codes[i]]; } };
        return { numbers: new Float32Array(data, start), at(i) { return this.numbers[i]; } };
      }));
    }
    return this.columns.get(key);
  }

  // -- frame ----------------------------------------------------------------------------------------------------------

  build() {
    const names = this.stores.map((store) => store.name.replace(/\.zarr$/, "")).join(" · ");
    document.title = this.source.linked ? `${names} – attlas` : document.title;
    const tab = (view, text, key) => h("button", { class: "tab", "data-view": view, title: `${text} (${key})`, onclick: () => this.go(view), text });
    this.notes = this.stores.flatMap((store) => store.notes.map((note) => (this.stores.length > 1 ? `${store.name}: ${note}` : note)));
    this.header = h("header", {},
      h("div", { class: "name" }, h("strong", { text: names }), h("span", { class: "quiet", text: [...new Set(this.stores.map((s) => s.model))].join(" · ") })),
      h("nav", {}, tab("grid", "Pictures", "g"), tab("data", "Dataset", "s")),
      h("div", { class: "tools" },
        this.notes.length ? h("button", { class: "plain", title: "What to know of these stores", "aria-label": "Notes", onclick: () => this.dialog("Notes", this.notes), text: plural(this.notes.length, "note") }) : null,
        h("button", { class: "plain", title: "Light or dark (l)", "aria-label": "Light or dark", onclick: () => this.theme(), text: "◐" }),
        h("button", { class: "plain", title: "Keys (?)", "aria-label": "Keys and help", onclick: () => this.help(), text: "?" })));
    this.main = h("main");
    this.root.replaceChildren(this.header, this.main);
    this.root.tabIndex = -1;
    try {
      const theme = localStorage.getItem("attlas-theme");
      if (theme) this.root.dataset.theme = theme;
    } catch { /* a file without storage */ }
    const target = this.source.linked ? document : this.root;
    target.addEventListener("keydown", (event) => this.key(event));
    if (this.source.linked) addEventListener("popstate", () => { this.readHash(); this.show(); this.update(); });
    new ResizeObserver(() => this.layoutGrid()).observe(this.main);
  }

  theme() {
    const dark = this.root.dataset.theme ? this.root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    this.root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("attlas-theme", this.root.dataset.theme); } catch { /* likewise */ }
  }

  dialog(title, lines, docked) {
    const close = () => dialog.close();
    const dialog = h("dialog", { "aria-label": title, onclose: () => dialog.remove(), onclick: (event) => event.target === dialog && close() },
      h("div", { class: "sheet" }, h("h2", { text: title }), ...lines.map((line) => (typeof line === "string" ? h("p", { text: line }) : line)),
        h("button", { class: "plain close", "aria-label": "Close", onclick: close, text: "×" })));
    dialog.classList.toggle("docked", Boolean(docked)); // beside what it speaks of, where there is room
    this.root.append(dialog);
    dialog.showModal();
    return dialog;
  }

  help() {
    const table = h("table", { class: "keys" }, ...KEYS.map(([keys, what]) => h("tr", {},
      h("td", {}, ...keys.split(" ").flatMap((key) => [h("kbd", { text: key }), " "])), h("td", { text: what }))));
    this.dialog("Keys", [table, h("h2", { text: "Searching" }), ...SEARCH.map((line) => h("p", { text: line }))]);
  }

  go(view, change = {}) {
    Object.assign(this.state, change, { view });
    this.writeHash(true);
    this.show();
    this.update();
  }

  show() {
    const { view } = this.state;
    for (const button of this.header.querySelectorAll("[data-view]")) {
      button.setAttribute("aria-current", String(button.dataset.view === view || (view === "picture" && button.dataset.view === "grid")));
    }
    this.root.dataset.view = view;
    this.main.replaceChildren();
    if (view === "grid") this.buildGrid();
    if (view === "picture") this.buildPicture();
    if (view === "data") this.buildData();
  }

  // Draws what the state says; the rest of a change is for `show`.
  update() {
    if (this.state.view === "picture") this.drawPicture();
    if (this.state.view === "grid") this.layoutGrid();
    this.writeHash(false);
  }

  set(change) {
    Object.assign(this.state, change);
    this.update();
  }

  // -- deep links -----------------------------------------------------------------------------------------------------

  writeHash(push) {
    if (!this.source.linked || location.protocol === "about:") return; // a frame of a report has no address of its own
    const s = this.state, parts = {};
    if (s.view === "picture") {
      parts.image = this.image(s.item);
      parts.layer = this.stores[0].layers[this.place(0)];
      if (s.heads.some((set) => set)) parts.heads = s.heads.map((set) => (set ? [...set].sort((a, b) => a - b).join(".") : "")).join("_");
      if (s.at) parts.at = s.at.prefix === undefined ? `${s.at.x.toFixed(4)},${s.at.y.toFixed(4)}` : `prefix${s.at.prefix}`;
      if (s.from) parts.from = 1;
      if (s.map !== "attention") parts.map = s.map;
      if (s.mass < 1) parts.mass = s.mass;
      if (s.opacity !== 0.7) parts.opacity = s.opacity;
      if (!s.overlay) parts.overlay = 0;
    }
    if (s.view === "data") {
      parts.view = "dataset";
      if (s.panel) parts.head = s.panel.join(".");
    }
    if (s.query) parts.q = s.query;
    if (s.answer) parts.answer = s.answer;
    if (s.sort) parts.sort = (s.down ? "-" : "") + s.sort;
    if (s.thumbs !== "pictures") parts.thumbs = s.thumbs;
    const text = `#${new URLSearchParams(parts)}`;
    if (text !== location.hash && !(text === "#" && !location.hash)) {
      history[push ? "pushState" : "replaceState"](null, "", text === "#" ? location.pathname : text);
    }
  }

  readHash() {
    const given = new URLSearchParams(location.hash.slice(1)), s = this.state;
    const number = (name, low, high, other) => {
      const value = given.has(name) ? Number(given.get(name)) : NaN;
      return Number.isFinite(value) ? clamp(value, low, high) : other;
    };
    s.view = given.has("image") ? "picture" : given.get("view") === "dataset" ? "data" : "grid";
    if (s.view === "picture") {
      const image = number("image", 0, Number.MAX_SAFE_INTEGER, 0);
      s.item = this.listed ? this.listed.indexOf(image) : clamp(Math.round(image), 0, this.count - 1);
      if (s.item < 0) Object.assign(s, { view: "grid", item: 0 }); // a file holds some pictures alone
      const layers = this.stores[0].layers, place = layers.indexOf(number("layer", 0, 1e6, layers.at(-1)));
      s.depth = layers.length > 1 && place >= 0 ? place / (layers.length - 1) : 1;
      const heads = (given.get("heads") ?? "").split("_");
      s.heads = this.stores.map((store, i) => {
        const found = (heads[i] || "").split(".").filter(Boolean).map(Number).filter((n) => Number.isInteger(n) && n >= 0 && n < store.heads);
        return found.length ? new Set(found) : null;
      });
      const at = given.get("at") ?? "", prefix = /^prefix(\d+)$/.exec(at), [x, y] = at.split(",").map(Number);
      s.at = prefix ? { prefix: Number(prefix[1]) } : at && x >= 0 && x < 1 && y >= 0 && y < 1 ? { x, y } : null;
      s.from = given.get("from") === "1";
      s.map = given.get("map") ?? "attention";
      s.mass = number("mass", 0.05, 1, 1);
      s.opacity = number("opacity", 0, 1, 0.7);
      s.overlay = given.get("overlay") !== "0";
    }
    const head = (given.get("head") ?? "").split(".").map(Number);
    s.panel = head.length === 3 && head.every(Number.isInteger) ? head : null;
    s.query = given.get("q") ?? "";
    s.answer = given.get("answer") ?? "";
    s.down = (given.get("sort") ?? "").startsWith("-");
    s.sort = (given.get("sort") ?? "").replace(/^-/, "");
    s.thumbs = given.get("thumbs") ?? "pictures";
    this.order = null;
  }

  // -- pictures in a grid ---------------------------------------------------------------------------------------------

  buildGrid() {
    const s = this.state, columns = this.stores[0].columns;
    this.cells = new Map();
    const search = h("input", {
      type: "search", placeholder: "Search, or entropy>4 predicted:cat", "aria-label": "Search and filter (/)", value: s.query, spellcheck: "false", list: "attlas-columns",
      oninput: (event) => this.sift({ query: event.target.value }),
    });
    const sort = h("select", { "aria-label": "Sort by", onchange: (event) => this.sift({ sort: event.target.value }) },
      h("option", { value: "", text: "order of the store" }), ...columns.map(({ name }) => h("option", { value: name, text: name })));
    sort.value = columns.some(({ name }) => name === s.sort) ? s.sort : (s.sort = "");
    const down = h("button", { class: "plain", "aria-label": "Turn the order round", title: "Turn the order round", onclick: () => { this.sift({ down: !s.down }); down.textContent = s.down ? "↓" : "↑"; }, text: s.down ? "↓" : "↑" });
    const choose = (name, label, options, change) => {
      const select = h("select", { "aria-label": label, onchange: (event) => change(event.target.value) }, ...options.map(([value, text]) => h("option", { value, text })));
      select.value = s[name];
      return select;
    };
    const answers = columns.some(({ name }) => name === "answer")
      ? choose("answer", "Right or wrong", [["", "every answer"], ["right", "right"], ["wrong", "wrong"]], (answer) => this.sift({ answer })) : null;
    const maps = this.stores[0].maps.filter(({ name }) => name === "rollout" || name === "chefer" || name === "gradient_rollout");
    const thumbs = maps.length ? choose("thumbs", "What to show (o)", [["pictures", "pictures"], ...maps.map(({ name }) => [name, `with ${name.replace("_", " ")}`])], (value) => { this.set({ thumbs: value }); }) : null;
    this.thumbsChoice = thumbs;
    this.total = h("span", { class: "quiet total", role: "status" });
    this.scroller = h("div", { class: "scroller", onscroll: () => this.layoutGrid(), tabindex: "-1" }, this.sheet = h("div", { class: "cells", role: "listbox", "aria-label": "Pictures" }));
    this.main.append(h("div", { class: "bar" }, search, h("label", {}, h("span", { class: "quiet", text: "sort " }), sort), down, answers, thumbs, this.total,
      h("datalist", { id: "attlas-columns" }, ...columns.map(({ name, kind }) => h("option", { value: `${name.includes(" ") ? JSON.stringify(name) : name}${kind === "text" ? ":" : ">"}` })))), this.scroller);
    this.search = search;
    this.focused = null;
    this.sift({});
  }

  // Search, filter and sort anew: `order` becomes the items to show.
  async sift(change) {
    Object.assign(this.state, change);
    const turn = (this.turn = (this.turn ?? 0) + 1);
    let problem = "";
    try {
      const order = await this.sifted();
      if (turn !== this.turn) return;
      this.order = order;
    } catch (error) {
      problem = error.message;
    }
    if (this.state.view !== "grid") return;
    this.total.textContent = problem || (this.order.length === this.count ? plural(this.count, "picture") : `${this.order.length.toLocaleString("en")} of ${plural(this.count, "picture")}`);
    if (Object.keys(change).length) this.scroller.scrollTop = 0;
    this.layoutGrid();
    this.writeHash(false);
  }

  async sifted() {
    const { query, sort, down, answer } = this.state, columns = this.stores[0].columns;
    let found = Uint32Array.from({ length: this.count }, (_, i) => i);
    if (!query.trim() && !sort && !answer) return down ? found.reverse() : found;
    const known = new Map(columns.map((column) => [column.name.toLowerCase(), column]));
    for (const { name, sign, value } of terms(query)) {
      const column = name === null ? null : known.get(name.toLowerCase());
      if (name !== null && !column) throw new Error(`no column ${name}; there are ${columns.map((c) => c.name).join(", ")}`);
      const matches = column && column.kind === "number" ? await this.compares(column.name, sign, value) : await this.contains(column ? [column.name] : ["path", "label", "predicted"].filter((c) => known.has(c)), sign, value);
      found = found.filter(matches);
    }
    if (answer && known.has("answer")) {
      const column = await this.column("answer");
      found = found.filter((i) => column.at(i) === answer);
    }
    if (sort && known.has(sort.toLowerCase())) {
      const column = await this.column(sort), sign = down ? -1 : 1;
      const values = column.numbers ?? column.codes; // texts are listed in their order
      const rank = (i) => (Number.isNaN(values[i]) ? Infinity : sign * values[i]);
      found = found.sort((a, b) => rank(a) - rank(b) || a - b);
    } else if (down) found.reverse();
    return found;
  }

  async compares(name, sign, value) {
    const limit = Number(value), { numbers } = await this.column(name);
    if (value === "" || Number.isNaN(limit)) throw new Error(`${name}${sign}${value}: this column holds numbers, as in ${name}>4`);
    const near = Math.abs(limit) * 1e-6;
    const test = { ">": (x) => x > limit, "<": (x) => x < limit, "=": (x) => Math.abs(x - limit) <= near, ":": (x) => Math.abs(x - limit) <= near, "!": (x) => Math.abs(x - limit) > near }[sign];
    return (i) => test(numbers[i]);
  }

  async contains(names, sign, value) {
    const wanted = value.toLowerCase();
    const tests = await Promise.all(names.map(async (name) => {
      const { texts, codes } = await this.column(name);
      const hit = texts.map((text) => (sign === "=" ? text.toLowerCase() === wanted : text.toLowerCase().includes(wanted)));
      return (i) => hit[codes[i]];
    }));
    return sign === "!" ? (i) => !tests.some((test) => test(i)) : (i) => tests.some((test) => test(i));
  }

  layoutGrid() {
    if (this.state.view !== "grid" || !this.order || !this.scroller?.isConnected) return;
    const width = this.sheet.clientWidth, gap = 10;
    const across = Math.max(width < 480 ? 3 : 1, Math.floor((width + gap) / (CELL + gap)));
    const size = Math.floor((width - (across - 1) * gap) / across), tall = size + 40;
    this.across = across;
    const whole = Math.ceil(this.order.length / across) * tall, height = Math.min(whole, TALLEST);
    this.sheet.style.height = `${height}px`;
    const seen = this.scroller.clientHeight, scale = height > seen ? (whole - seen) / (height - seen) : 1;
    const top = this.scroller.scrollTop * scale, first = Math.max(0, Math.floor(top / tall) - 1), last = Math.ceil((top + seen) / tall) + 1;
    const kept = new Set();
    for (let place = first * across; place < Math.min(last * across, this.order.length); place++) {
      const item = this.order[place];
      kept.add(item);
      let cell = this.cells.get(item);
      if (!cell) {
        cell = this.cell(item);
        this.cells.set(item, cell);
        this.sheet.append(cell);
      }
      const y = Math.floor(place / across) * tall - top + this.scroller.scrollTop;
      cell.style.transform = `translate(${(place % across) * (size + gap)}px, ${y}px)`;
      cell.style.width = `${size}px`;
      cell.dataset.place = place;
      cell.tabIndex = place === (this.focused ?? first * across) || (this.focused === null && place === 0) ? 0 : -1;
      this.caption(cell, item);
    }
    for (const [item, cell] of this.cells) {
      if (kept.has(item)) continue;
      cell.remove();
      this.cells.delete(item);
    }
  }

  cell(item) {
    const image = this.image(item), picture = h("div", { class: "thumb" });
    picture.style.aspectRatio = `${this.stores[0].size[1]} / ${this.stores[0].size[0]}`;
    const cell = h("button", { class: "cell", role: "option", "data-item": item, onclick: () => this.go("picture", { item }), onfocus: () => { this.focused = Number(cell.dataset.place); } },
      picture, h("span", { class: "line1", text: `${image}` }), h("span", { class: "line2 quiet" }));
    return cell;
  }

  // A cell's words, and its picture with the map that is chosen; what is there already stays.
  async caption(cell, item) {
    const s = this.state, wish = `${s.thumbs}/${s.sort}`;
    if (cell.dataset.wish === wish) return;
    cell.dataset.wish = wish;
    this.fillThumb(cell, item);
    const columns = new Map(this.stores[0].columns.map((column) => [column.name, column]));
    const sortable = columns.get(s.sort);
    try {
      const [label, predicted, answer, sorted] = await Promise.all(["label", "predicted", "answer", s.sort].map((name) => (columns.has(name) ? this.column(name) : null)));
      const text = label?.at(item) ?? "", said = predicted?.at(item) ?? "", how = answer?.at(item) ?? "";
      const [line1, line2] = cell.querySelectorAll("span");
      line1.textContent = text || said || (columns.has("path") ? (await this.column("path")).at(item) : "");
      line2.textContent = sortable?.kind === "number" ? `${s.sort} ${digits(sorted.at(item))}` : how === "wrong" || (text && said && !how) ? `→ ${said}` : "";
      line2.classList.toggle("wrong", how === "wrong" && sortable?.kind !== "number");
      cell.title = [text && `label ${text}`, said && `predicted ${said}`].filter(Boolean).join(", ");
      cell.setAttribute("aria-label", `Picture ${this.image(item)}: ${cell.title}`);
    } catch (error) {
      cell.title = error.message;
    }
  }

  hasPicture(s, image) {
    this.samples ??= this.stores.map((store) => new Set(store.sample));
    return this.stores[s].folder || this.samples[s].has(image);
  }

  async fillThumb(cell, item) {
    const box = cell.querySelector(".thumb"), image = this.image(item), store = this.stores[0];
    const named = this.state.thumbs === "pictures" ? (this.hasPicture(0, image) ? null : "rollout") : this.state.thumbs;
    const alone = !this.hasPicture(0, image);
    if (!alone && !box.querySelector("img")) {
      const picture = h("img", { alt: "", decoding: "async", onerror: () => { picture.remove(); box.dataset.why = "no picture"; } });
      box.append(picture);
      this.source.url(`thumb/0/${image}`).then((url) => { picture.src = url; }).catch((error) => { picture.remove(); box.dataset.why = "no picture"; box.title = error.message; });
    }
    box.querySelector("canvas")?.remove();
    if (!named || !store.maps.some(({ name }) => name === named)) {
      if (alone) box.dataset.why = "no picture";
      return;
    }
    try {
      const map = await this.map(0, image, named);
      if (!box.isConnected || (this.state.thumbs !== named && !alone)) return;
      const canvas = h("canvas", { class: alone ? "alone" : "over" });
      paint(canvas, map.part(0, null), store.grid, {});
      box.querySelector("canvas")?.remove();
      box.append(canvas);
      if (alone) box.dataset.map = named;
    } catch (error) {
      box.dataset.why = "no picture";
      box.title = error.message;
    }
  }

  map(s, image, name) {
    const path = `map/${s}/${image}/${encodeURIComponent(name)}`;
    if (!this.maps.has(path)) {
      if (this.maps.size > 2000) this.maps.delete(this.maps.keys().next().value);
      this.maps.set(path, this.load(path).then((buffer) => {
        const [header, data, start] = unpack(buffer), values = new Float32Array(data, start), [layers, heads, rows, columns] = header.shape;
        const size = rows * columns;
        return {
          layers, heads, units: header.units,
          part(place, chosen) { // one layer's, mean over the chosen heads
            const found = new Float32Array(size), all = Array.from({ length: heads }, (_, i) => i);
            const some = chosen ? all.filter((head) => chosen.has(head)) : all, used = some.length ? some : all;
            const first = Math.min(place, layers - 1) * heads;
            for (const head of used) for (let i = 0; i < size; i++) found[i] += values[(first + head) * size + i] / used.length;
            return found;
          },
        };
      }));
    }
    return this.maps.get(path);
  }

  // -- one picture ----------------------------------------------------------------------------------------------------

  place(s) {
    return Math.round(this.state.depth * (this.stores[s].layers.length - 1));
  }

  buildPicture() {
    const s = this.state;
    this.hover = null;
    const slider = (name, label, low, high, step, shown, key) => {
      const value = h("output", { text: shown(s[name]) });
      const input = h("input", { type: "range", min: low, max: high, step, value: s[name], "aria-label": label, oninput: () => this.set({ [name]: Number(input.value) }) });
      this.controls[name] = () => { input.value = s[name]; value.textContent = shown(s[name]); };
      return h("label", { class: "slider", title: `${label} (${key})` }, h("span", { class: "quiet", text: `${label} ` }), input, value);
    };
    this.controls = {};
    const toggle = (name, text, key, title) => {
      const button = h("button", { class: "toggle", title: `${title} (${key})`, onclick: () => this.set({ [name]: !s[name] }), text });
      this.controls[name] = () => button.setAttribute("aria-pressed", String(Boolean(s[name])));
      return button;
    };
    const maps = new Map(this.stores.flatMap((store) => store.maps.map((map) => [map.name, map])));
    const map = h("select", { "aria-label": "Map (m)", title: "Map (m)", onchange: () => this.set({ map: map.value }) },
      h("option", { value: "attention", text: "attention" }), ...[...maps.values()].map(({ name, title }) => h("option", { value: name, title, text: name.replaceAll("_", " ") })));
    this.choices = ["attention", ...maps.keys()];
    const none = this.stores.every((store) => !store.whole && !store.rows);
    if (!this.choices.includes(s.map) || (none && s.map === "attention")) s.map = none ? (this.choices[1] ?? "attention") : "attention";
    this.controls.map = () => { map.value = s.map; };
    const longest = Math.max(...this.stores.map((store) => store.layers.length));
    const coded = this.stores.every((store) => store.whole === "attention_code");
    const bar = h("div", { class: "bar" },
      h("button", { class: "plain", title: "Back to all pictures (g)", "aria-label": "Back to all pictures", onclick: () => this.go("grid"), text: "▦" }),
      h("button", { class: "plain", title: "Previous picture (p)", "aria-label": "Previous picture", onclick: () => this.step(-1), text: "←" }),
      h("button", { class: "plain", title: "Next picture (n)", "aria-label": "Next picture", onclick: () => this.step(1), text: "→" }),
      map,
      toggle("from", "attended by", "d", "Who attends to the patch, instead of what it attends to"),
      longest > 1 ? slider("depth", "layer", 0, 1, 1 / (longest - 1), () => String(this.stores[0].layers[this.place(0)]), "[ ]") : null,
      slider("opacity", "overlay", 0, 1, 0.05, percent, "− +"),
      coded ? null : slider("mass", "mass", 0.05, 1, 0.05, (x) => (x < 1 ? percent(x) : "off"), "t"),
      toggle("common", "one scale", "e", "One scale from 0 for every map of this picture"),
      toggle("smooth", "smooth", "i", "Interpolate between patches"));
    this.open = this.stores.map((store, i) => this.storePanel(store, i));
    this.title = h("div", { class: "title" });
    this.main.append(bar, h("div", { class: "page" }, this.title, h("div", { class: "stores", "data-count": this.stores.length }, ...this.open.map((one) => one.element))));
  }

  storePanel(store, s) {
    const [rows, columns] = store.grid, one = { s, rows: new Map(), item: null };
    one.image = h("img", { alt: "The crop that the model saw", draggable: "false", onerror: () => { one.image.hidden = true; } });
    one.over = h("canvas", { class: "overlay", "aria-hidden": "true" });
    one.pin = h("div", { class: "patch pin", hidden: true });
    one.cursor = h("div", { class: "patch cursor", hidden: true });
    one.why = h("p", { class: "why", role: "status" });
    one.box = h("div", { class: "box", tabindex: "0", role: "application", "aria-label": "The picture: hover or click a patch, or move with the arrow keys", "data-store": s }, one.image, one.over, one.pin, one.cursor, one.why);
    one.box.style.aspectRatio = `${store.size[1]} / ${store.size[0]}`;
    const where = (event) => {
      const box = one.box.getBoundingClientRect();
      return { x: clamp((event.clientX - box.left) / box.width, 0, 0.9999), y: clamp((event.clientY - box.top) / box.height, 0, 0.9999) };
    };
    const same = (a, b) => a && b && a.x !== undefined && b.x !== undefined && Math.floor(a.x * columns) === Math.floor(b.x * columns) && Math.floor(a.y * rows) === Math.floor(b.y * rows);
    one.box.addEventListener("pointermove", (event) => {
      const at = where(event);
      if (event.pointerType === "touch" && !event.buttons) return;
      if (same(at, this.hover)) return;
      this.hover = at;
      this.redraw();
    });
    one.box.addEventListener("pointerleave", () => { this.hover = null; this.redraw(); });
    one.box.addEventListener("click", (event) => {
      const at = where(event);
      this.hover = null;
      this.set({ at: same(at, this.state.at) ? null : at, map: "attention" });
    });
    one.legend = h("div", { class: "legend" }, one.bar = h("canvas", { "aria-hidden": "true" }), one.low = h("span"), one.middle = h("span"), one.high = h("span"));
    ramp(one.bar);
    one.says = h("p", { class: "says" });
    one.tokens = h("div", { class: "tokens" });
    const readout = { class: "class token", mean: "mean of patches", pool: "mean of patches", distilled: "class and distillation tokens" }[store.readout];
    const chips = [[null, `readout: ${readout}`], ...store.prefix.map((kind, i) => [{ prefix: i }, kind === "register" ? `register ${i - store.prefix.indexOf("register") + 1}` : kind])];
    one.chips = chips.filter(([at]) => at === null || store.readout !== "class" || at.prefix !== store.readout_rows[0]);
    one.chipButtons = one.chips.map(([at, text]) => h("button", { class: "toggle", onclick: () => this.set({ at, map: "attention" }), text }));
    one.tokens.append(...one.chipButtons);
    one.facts = h("div", { class: "facts" });
    one.grid = this.tiles(store, s, one);
    one.element = h("section", { class: "store", "aria-label": store.name },
      this.stores.length > 1 ? h("h2", {}, store.name.replace(/\.zarr$/, ""), h("span", { class: "quiet", text: ` ${store.model}` })) : null,
      h("div", { class: "figure" }, one.box, one.legend, one.says, one.tokens), h("div", { class: "side" }, one.grid, one.note = h("p", { class: "quiet note" }), one.facts));
    return one;
  }

  // Every layer (across) and head (down) as a small map of its own.
  tiles(store, s, one) {
    const heads = store.whole === "attention_mean" ? 1 : store.heads, grid = h("div", { class: "tiles", role: "group", "aria-label": "Every layer and head" });
    grid.style.setProperty("--layers", store.layers.length);
    grid.style.setProperty("--aspect", `${store.size[1]} / ${store.size[0]}`);
    grid.dataset.dense = String(store.layers.length > 16);
    one.columns = store.layers.map((layer, place) => h("button", { class: "layer", title: `Layer ${layer}`, "aria-label": `Layer ${layer}`, onclick: () => this.choose(s, place), text: `${layer}` }));
    grid.append(h("span", { class: "corner quiet", text: "layer" }), ...one.columns);
    one.tiles = [];
    one.labels = [];
    const row = (text, head, title) => {
      const label = h("button", { class: "head", title, "aria-label": title, onclick: () => this.chooseHead(s, head), text });
      one.labels.push([label, head]);
      grid.append(label);
      one.tiles.push(store.layers.map((layer, place) => {
        const canvas = h("canvas", { "aria-hidden": "true" });
        const name = head === null ? "mean of the chosen heads" : heads === 1 ? "mean over heads" : `head ${head}`;
        const tile = h("button", { class: "tile", "aria-label": `Layer ${layer}, ${name}`, onclick: (event) => this.choose(s, place, head, event.shiftKey || event.ctrlKey || event.metaKey) }, canvas);
        grid.append(tile);
        return { tile, canvas, head, place };
      }));
    };
    for (let head = 0; head < heads; head++) row(heads === 1 ? "mean" : `${head}`, heads === 1 ? null : head, heads === 1 ? "Mean over heads" : `Head ${head}: on or off`);
    if (heads > 1) row("mean", null, "All heads");
    return grid;
  }

  choose(s, place, head, add) {
    const heads = [...this.state.heads], layers = this.stores[s].layers.length;
    if (head === null) heads[s] = null;
    else if (head !== undefined) heads[s] = add && heads[s] ? toggled(heads[s], head) : new Set([head]);
    this.set({ depth: layers > 1 ? place / (layers - 1) : 1, heads, map: "attention" });
  }

  chooseHead(s, head) {
    const heads = [...this.state.heads];
    heads[s] = head === null ? null : heads[s] ? toggled(heads[s], head) : new Set([head]);
    this.set({ heads });
  }

  step(by) {
    const order = this.order ?? Uint32Array.from({ length: this.count }, (_, i) => i), at = order.indexOf(this.state.item);
    const next = order[clamp((at < 0 ? 0 : at) + by, 0, order.length - 1)];
    if (next !== undefined) this.set({ item: next });
  }

  drawPicture() {
    for (const refresh of Object.values(this.controls)) refresh();
    for (const one of this.open) if (one.item !== this.state.item) this.openPicture(one);
    for (const one of this.open) this.want(one);
    this.redraw();
  }

  // A new picture in a store's panel: its facts and pixels; `want` loads its attention.
  async openPicture(one) {
    const { item } = this.state, store = this.stores[one.s];
    Object.assign(one, { item, index: null, rows: new Map(), facts_: null, map: null, whyNot: "" });
    const image = await this.imageIn(one.s, item).catch((error) => { one.whyNot = error.message; return -1; });
    if (one.item !== item) return;
    one.index = image;
    if (image < 0) {
      one.whyNot ||= `${store.name} has no picture of this path`;
      one.image.hidden = true;
      this.redraw();
      return;
    }
    const picture = `picture/${one.s}/${image}`;
    if (this.hasPicture(one.s, image)) {
      this.source.url(picture).then((url) => { if (one.item === item) { one.image.hidden = false; one.image.src = url; } })
        .catch(() => { one.image.hidden = true; });
    } else one.image.hidden = true;
    this.want(one);
    try {
      const facts = json(await this.load(`facts/${one.s}/${image}`));
      if (one.item !== item) return;
      one.facts_ = facts;
      if (facts.why) one.whyNot = facts.why;
    } catch (error) {
      one.whyNot = error.message;
    }
    this.redraw();
  }

  // Loads the attention that is looked at, the chosen layer first, and the map that is chosen.
  want(one) {
    const store = this.stores[one.s], item = one.item;
    if (one.index === null || one.index < 0) return;
    if (this.state.map !== "attention" && one.map?.name !== this.state.map) {
      const name = this.state.map;
      one.map = { name };
      if (!store.maps.some((map) => map.name === name)) one.map.why = `${store.name} holds no ${name}`;
      else this.map(one.s, one.index, name).then((map) => { one.map = { name, map }; this.redraw(); }, (error) => { one.map = { name, why: error.message }; this.redraw(); });
    }
    if (!store.whole && !store.rows) return;
    const chosen = this.place(one.s), all = store.layers.keys();
    const bytes = store.layers.length * store.heads * store.tokens ** 2;
    const load = async (place) => {
      if (one.rows.has(place) || one.item !== item) return;
      one.rows.set(place, null);
      const rows = await this.layer(one.s, one.index, place).catch((error) => error);
      if (one.item !== item) return;
      one.rows.set(place, rows);
      this.redraw();
    };
    // What is looked at comes first, and alone; the others follow.
    load(chosen).then(() => { if (bytes <= EAGER) for (const place of all) load(place); });
  }

  layer(s, image, place) {
    const path = `rows/${s}/${image}/${place}`, key = `${s}/${image}`;
    let kept = this.rows.get(key);
    if (!kept) {
      this.rows.set(key, (kept = new Map()));
      while (this.rows.size > KEPT * this.stores.length) this.rows.delete(this.rows.keys().next().value);
    }
    if (!kept.has(place)) kept.set(place, this.load(path).then((buffer) => new Rows(buffer)));
    return kept.get(place);
  }

  redraw() {
    if (this.drawing) return;
    this.drawing = true;
    requestAnimationFrame(() => {
      this.drawing = false;
      if (this.state.view !== "picture") return;
      this.drawTitle();
      for (const one of this.open) this.drawStore(one);
    });
  }

  drawTitle() {
    const facts = this.open.map((one) => one.facts_).find(Boolean), at = this.order ? this.order.indexOf(this.state.item) : this.state.item;
    this.title.replaceChildren(h("strong", { text: facts?.label || facts?.path || `picture ${this.image(this.state.item)}` }),
      h("span", { class: "quiet", text: `${facts?.label ? ` ${facts.path}` : ""} · ${(at < 0 ? this.state.item : at) + 1} of ${(this.order?.length || this.count).toLocaleString("en")}` }));
  }

  // The token that is looked at, in words, and its rows.
  token(store) {
    const at = this.hover ?? this.state.at, [rows, columns] = store.grid;
    if (at && at.x !== undefined) {
      const y = Math.floor(at.y * rows), x = Math.floor(at.x * columns);
      return { queries: [store.prefix.length + y * columns + x], words: `patch (${y}, ${x})`, verb: "attends", x, y };
    }
    if (at && at.prefix < store.prefix.length) return { queries: [at.prefix], words: `the ${store.prefix[at.prefix]} token`, verb: "attends" };
    const words = { class: "the class token", distilled: "class and distillation token" }[store.readout] ?? "the patches (their mean)";
    return { queries: store.readout_rows, words, verb: store.readout === "class" ? "attends" : "attend", readout: true };
  }

  drawStore(one) {
    const store = this.stores[one.s], s = this.state, token = this.token(store), skip = store.prefix.length, chosen = s.heads[one.s], now = this.place(one.s);
    const [rows, columns] = store.grid, lines = new Map();
    let most = 0, known = true;
    const lineOf = (place, head) => {
      const key = `${place}/${head}`;
      if (!lines.has(key)) {
        const layer = one.rows.get(place);
        lines.set(key, layer instanceof Rows ? layer.line(Math.min(head, layer.heads - 1), token.queries, s.from) : null);
      }
      return lines.get(key);
    };
    const meanOf = (place) => {
      const layer = one.rows.get(place);
      if (!(layer instanceof Rows)) return null;
      const heads = layer.heads === 1 ? [0] : chosen ? [...chosen] : Array.from({ length: layer.heads }, (_, i) => i);
      const parts = heads.map((head) => lineOf(place, head)).filter(Boolean);
      return parts.length ? layer.mean(parts, token.queries, s.from) : null;
    };
    const drawn = one.tiles.flat().map((tile) => ({ ...tile, line: tile.head === null ? meanOf(tile.place) : lineOf(tile.place, tile.head) }));
    for (const { line } of drawn) {
      const own = line ? line.most ?? line.subarray(skip).reduce((a, b) => Math.max(a, b), 0) : 0;
      if (own > most) [most, known] = [own, line.most !== undefined];
    }
    for (const { tile, canvas, head, place, line } of drawn) {
      const current = place === now && s.map === "attention";
      tile.setAttribute("aria-pressed", String(current && (head === null ? !chosen : chosen?.has(head) ?? false)));
      tile.classList.toggle("empty", !line);
      if (!line) {
        const layer = one.rows.get(place);
        tile.title = layer instanceof Error ? layer.message : layer instanceof Rows ? "the rows of patches were not kept" : "";
        canvas.hidden = true;
        continue;
      }
      canvas.hidden = false;
      const range = paint(canvas, line.subarray(skip), store.grid, { root: true, high: s.common ? most : line.most });
      const top = line.most ?? range.most, told = line.most === undefined ? about : digits;
      tile.title = `layer ${store.layers[place]}, ${head === null ? "mean of heads" : `head ${head}`}: at most ${told(top)}, ${told(top * line.length)} × uniform`;
    }
    for (const [place, button] of one.columns.entries()) button.setAttribute("aria-pressed", String(place === now));
    for (const [label, head] of one.labels) label.setAttribute("aria-pressed", String(head === null ? !chosen : chosen?.has(head) ?? false));
    this.drawBig(one, token, meanOf(now), most, known);
    for (const [i, button] of one.chipButtons.entries()) {
      const [at] = one.chips[i];
      button.setAttribute("aria-pressed", String(at === null ? Boolean(token.readout) : !token.readout && token.x === undefined && s.at?.prefix === at.prefix));
    }
    const mark = (element, at) => {
      element.hidden = !at || at.x === undefined;
      if (element.hidden) return;
      element.style.left = `${(100 * Math.floor(at.x * columns)) / columns}%`;
      element.style.top = `${(100 * Math.floor(at.y * rows)) / rows}%`;
      element.style.width = `${100 / columns}%`;
      element.style.height = `${100 / rows}%`;
    };
    mark(one.pin, s.at);
    mark(one.cursor, this.hover);
    this.drawFacts(one);
  }

  // The large picture with its map, the scale and what it says.
  drawBig(one, token, line, most, known) {
    const store = this.stores[one.s], s = this.state, now = this.place(one.s), layer = one.rows.get(now), chosen = s.heads[one.s];
    const heads = store.whole === "attention_mean" || (!chosen && store.heads > 1) ? `mean of ${store.heads} heads` : chosen ? `head${chosen.size > 1 ? "s" : ""} ${[...chosen].sort((a, b) => a - b).join(", ")}` : "its head";
    let values = null, why = one.whyNot, says = "", options = {}, told = digits;
    if (s.map === "attention") {
      values = line?.subarray(store.prefix.length) ?? null;
      options = { root: true, high: s.common ? most : line?.most };
      if (!(s.common ? known : line?.most !== undefined)) told = about;
      says = `Layer ${store.layers[now]}, ${heads}: ${s.from ? `who attends to ${token.words}` : `what ${token.words} ${token.verb} to`}`;
      if (line && store.prefix.length && !s.from) {
        const mass = store.prefix.map((kind, i) => [kind, line[i]]);
        const own = new Map();
        for (const [kind, value] of mass) own.set(kind, (own.get(kind) ?? 0) + value);
        says += `; ${[...own].map(([kind, value]) => `${percent(value)} on ${kind === "register" && store.prefix.filter((k) => k === kind).length > 1 ? "registers" : `the ${kind} token`}`).join(", ")}`;
      }
      if (!values && !why) {
        why = layer instanceof Error ? layer.message : layer instanceof Rows ? (s.from ? "who attends to it is not known: only the prefix tokens' rows were kept" : "what patches attend to was not kept here (--keep attention keeps it)") : !store.whole && !store.rows ? "attention was not kept: choose a stored map" : "";
      }
    } else if (one.map?.name === s.map) {
      why ||= one.map.why ?? "";
      const { map } = one.map;
      if (map) {
        values = map.part(now, chosen);
        options = { low: s.common ? 0 : undefined };
        says = `${s.map.replaceAll("_", " ")}${map.layers > 1 ? `, layer ${store.layers[now]}` : ""}${map.heads > 1 ? `, ${heads}` : ""}: ${store.maps.find(({ name }) => name === s.map)?.title ?? ""}`;
      }
    }
    const masked = s.mass < 1 && store.whole !== "attention_code";
    if (values) {
      const range = paint(one.over, values, store.grid, { ...options, mass: masked ? s.mass : undefined, veil: !one.image.hidden });
      one.low.textContent = digits(range.low);
      one.middle.textContent = options.root ? told(range.high / 4) : digits((range.low + range.high) / 2);
      one.high.textContent = options.root ? `${told(range.high)}, ${told(range.high * store.tokens)} × uniform` : `${digits(range.high)}, ${digits(range.high / range.mean)} × its mean`;
      if (masked) says += `; the fewest patches that hold ${percent(s.mass)} of it are bright`;
    }
    one.over.dataset.shows = values ? `${one.index}/${now}/${s.map}` : ""; // what tests and measurements wait for
    one.legend.hidden = !values;
    one.over.hidden = !values || !s.overlay;
    one.over.style.opacity = one.image.hidden ? 1 : s.opacity;
    one.over.classList.toggle("smooth", s.smooth);
    const bare = one.image.hidden && values && one.index !== null && !why ? "no picture at hand (--images DIR gives it): the map alone" : "";
    one.why.textContent = why;
    one.why.hidden = !why;
    one.says.textContent = says + (bare ? `; ${bare}` : "");
  }

  drawFacts(one) {
    const facts = one.facts_, store = this.stores[one.s], place = this.place(one.s), chosen = this.state.heads[one.s];
    if (!facts) return one.facts.replaceChildren();
    const top = (facts.top ?? []).map(([name, share, right]) => {
      const bar = h("i");
      bar.style.width = `${(100 * share).toFixed(1)}%`;
      return h("li", { class: right ? "hit" : "" }, h("span", { text: name || "?" }), h("span", { class: "meter" }, bar), h("span", { class: "quiet", text: percent(share) }));
    });
    const numbers = Object.entries(facts.statistics ?? {}).map(([name, { units, values }]) => {
      const all = values[place].filter((value, head) => value !== null && (!chosen || chosen.has(head)));
      const mean = all.reduce((sum, value) => sum + value, 0) / all.length;
      return h("div", {}, h("dt", { class: "quiet", text: name.replaceAll("_", " ") }), h("dd", { text: `${digits(all.length ? mean : null)}${units && units !== "1" ? ` ${units}` : ""}` }));
    });
    one.facts.replaceChildren(
      ...(top.length ? [h("ol", { class: "top" }, ...top)] : []),
      ...(facts.target && facts.top && facts.target !== facts.top[0][0] ? [h("p", { class: "quiet", text: `gradients are of ${facts.target}` })] : []),
      ...(numbers.length ? [h("dl", { class: "numbers" }, ...numbers)] : []));
    one.note.textContent = "Each small map has a colour scale of its own, unless “one scale” is on; hover one for its maximum. Click one to see it large; shift-click adds a head.";
    if (store.layers.length * store.heads * store.tokens ** 2 > EAGER) one.note.textContent += " This model's attention is large: layers load when you choose them.";
  }

  // -- the dataset ----------------------------------------------------------------------------------------------------

  async buildData() {
    const body = h("div", { class: "page data" }), turn = {};
    this.building = turn;
    this.main.append(body);
    body.append(h("p", { class: "quiet", role: "status", text: "Reading …" }));
    const all = await Promise.all(this.stores.map((_, s) => this.load(`panels/${s}`).then(json, (error) => error)));
    if (this.building !== turn || this.state.view !== "data") return;
    body.replaceChildren();
    for (const [s, panels] of all.entries()) if (panels instanceof Error) body.append(h("p", { text: `${this.stores[s].name}: ${panels.message}` }));
    const names = [...new Set(all.flatMap((panels) => (panels instanceof Error ? [] : panels.map(({ name }) => name))))];
    if (!names.length) body.append(h("p", { text: "No statistic by layer and head is in the store: `attlas analyze STORE` makes them." }));
    else body.append(h("p", { class: "quiet", text: "A dot is a head: its mean over images, with the 95 % interval where the analysis made one. Click it for its mean offset map. Line: mean over heads; dashed: uniform attention." }));
    const sheet = h("div", { class: "panels", "data-count": this.stores.length });
    body.append(sheet);
    for (const name of names) {
      const found = all.map((panels) => (panels instanceof Error ? undefined : panels.find((panel) => panel.name === name)));
      const numbers = found.filter(Boolean).flatMap((panel) => [...panel.mean.flat(), ...(panel.interval?.flat(2) ?? []), panel.uniform]).filter((x) => x !== null);
      const low = Math.min(0, ...numbers), high = Math.max(...numbers) || 1;
      for (const [s, panel] of found.entries()) {
        if (panel) sheet.append(this.panel(s, panel, low, high));
        else if (this.stores.length > 1) sheet.append(h("figure", {}, h("p", { class: "quiet", text: `${this.stores[s].name} has no ${name}` })));
      }
    }
    if (this.state.panel) this.openHead(...this.state.panel);
  }

  panel(s, panel, low, high) {
    const store = this.stores[s], W = 400, H = 210, left = 44, right = 10, top = 10, bottom = 34, layers = store.layers;
    const x = (place, head) => left + ((place + 0.5 + (store.heads > 1 ? (head / (store.heads - 1) - 0.5) * 0.5 : 0)) / layers.length) * (W - left - right);
    const y = (value) => top + (1 - (value - low) / (high - low || 1)) * (H - top - bottom);
    const unit = panel.units === "1" ? "" : panel.units;
    const svg = h("svg", { viewBox: `0 0 ${W} ${H}`, role: "group", "aria-label": `${panel.name} by layer` });
    for (const tick of ticks(low, high)) {
      svg.append(h("line", { x1: left, x2: W - right, y1: y(tick), y2: y(tick), class: "rule" }), h("text", { x: left - 6, y: y(tick) + 3, "text-anchor": "end", text: String(Number(tick.toPrecision(6))) }));
    }
    const step = Math.ceil(layers.length / 12);
    for (const [place, layer] of layers.entries()) if (place % step === 0) svg.append(h("text", { x: x(place, (store.heads - 1) / 2), y: H - bottom + 14, "text-anchor": "middle", text: `${layer}` }));
    svg.append(h("text", { x: left + (W - left - right) / 2, y: H - 4, "text-anchor": "middle", text: "layer" }));
    if (panel.uniform !== null) svg.append(h("line", { x1: left, x2: W - right, y1: y(panel.uniform), y2: y(panel.uniform), class: "uniform" }));
    const means = panel.mean.map((heads) => heads.filter((value) => value !== null)).map((heads) => heads.reduce((sum, value) => sum + value, 0) / heads.length);
    const middle = (place) => x(place, (store.heads - 1) / 2);
    svg.append(h("path", { class: "mean", d: means.map((value, place) => (Number.isFinite(value) ? `${place && Number.isFinite(means[place - 1]) ? "L" : "M"}${middle(place)} ${y(value)}` : "")).join("") }));
    for (const [place, heads] of panel.mean.entries()) for (const [head, value] of heads.entries()) {
      if (value === null) continue;
      const bounds = panel.interval?.map((bound) => bound[place][head]);
      if (bounds?.every((bound) => bound !== null)) svg.append(h("line", { x1: x(place, head), x2: x(place, head), y1: y(bounds[0]), y2: y(bounds[1]), class: "interval" }));
      const text = `layer ${layers[place]}, head ${head}: ${digits(value)} ${unit}${bounds ? ` (${digits(bounds[0])} to ${digits(bounds[1])})` : ""}`;
      const open = () => this.openHead(s, place, head);
      svg.append(h("circle", { cx: x(place, head), cy: y(value), r: store.heads > 8 ? 2.6 : 3.2, tabindex: "0", role: "button", "aria-label": text, "data-head": `${s}.${place}.${head}`, onclick: open, onkeydown: (event) => { if (event.key === "Enter") open(); } }, h("title", { text })));
    }
    const caption = h("figcaption", {}, h("strong", { text: panel.name.replaceAll("_", " ") }), ` ${unit}`, this.stores.length > 1 ? h("span", { class: "quiet", text: ` · ${store.name.replace(/\.zarr$/, "")}` }) : null, h("span", { class: "quiet block", text: panel.title + (panel.analysed ? "" : "; mean over the images done so far") }));
    return h("figure", { "data-panel": panel.name }, caption, svg);
  }

  // A head's mean offset map: where the key lies from the query.
  async openHead(s, place, head) {
    const store = this.stores[s];
    if (!store || !(place >= 0 && place < store.layers.length) || !(head >= 0 && head < store.heads)) return;
    this.state.panel = [s, place, head];
    this.writeHash(false);
    const body = h("div", { class: "offset" }, h("p", { class: "quiet", role: "status", text: "Reading …" }));
    const see = h("button", { class: "toggle", onclick: () => {
      const heads = this.stores.map((_, i) => (i === s ? new Set([head]) : null));
      sheet.close();
      this.go("picture", { depth: store.layers.length > 1 ? place / (store.layers.length - 1) : 1, heads, map: "attention" });
    }, text: "see this head on a picture" });
    const sheet = this.dialog(`${this.stores.length > 1 ? `${store.name.replace(/\.zarr$/, "")}: ` : ""}layer ${store.layers[place]}, head ${head}`, [body, see], true);
    const dots = [...this.main.querySelectorAll(`[data-head="${s}.${place}.${head}"]`)];
    for (const dot of dots) dot.classList.add("open");
    sheet.addEventListener("close", () => {
      for (const dot of dots) dot.classList.remove("open");
      this.state.panel = null;
      this.writeHash(false);
    });
    try {
      if (!store.offsets) throw new Error("mean offset maps were not computed: `attlas analyze STORE offset_map_mean` makes them");
      this.offsets ??= [];
      this.offsets[s] ??= this.load(`offsets/${s}`);
      const [header, data, start] = unpack(await this.offsets[s]), [, heads, rows, columns] = header.shape;
      const size = rows * columns, values = new Float32Array(data, start).subarray((place * heads + head) * size, (place * heads + head + 1) * size);
      const canvas = h("canvas", { role: "img", "aria-label": "Mean attention by offset of the key from the query" }), bar = h("canvas", { "aria-hidden": "true" });
      canvas.style.aspectRatio = `${columns * store.patch[1]} / ${rows * store.patch[0]}`;
      const range = paint(canvas, values, [rows, columns], { root: true });
      ramp(bar);
      const best = values.indexOf(range.most), dy = Math.floor(best / columns) - (rows - 1) / 2, dx = (best % columns) - (columns - 1) / 2;
      const way = [dy && `${Math.abs(dy)} ${dy < 0 ? "up" : "down"}`, dx && `${Math.abs(dx)} ${dx < 0 ? "left" : "right"}`].filter(Boolean).join(", ") || "the patch itself";
      body.replaceChildren(canvas, h("div", { class: "legend" }, bar, h("span", { text: "0" }), h("span", { text: digits(range.high / 4) }), h("span", { text: digits(range.high) })),
        h("p", { text: `Mean attention by where the key lies from the query; the centre is the patch itself. Most at: ${way} (${digits(range.most)}).` }));
    } catch (error) {
      body.replaceChildren(h("p", { text: error.message }));
    }
  }

  // -- keys -----------------------------------------------------------------------------------------------------------

  key(event) {
    const target = event.target, s = this.state;
    if (event.ctrlKey || event.metaKey || event.altKey || this.root.querySelector("dialog[open]")) return;
    if (["INPUT", "SELECT", "TEXTAREA"].includes(target.tagName) && !(target.type === "range" && !event.key.startsWith("Arrow"))) {
      if (event.key === "Escape") target.blur();
      return;
    }
    const done = (action) => { event.preventDefault(); action(); };
    if (event.key === "?") return done(() => this.help());
    if (event.key === "l") return done(() => this.theme());
    if (event.key === "g" || (event.key === "Escape" && s.view !== "grid")) return done(() => this.go("grid"));
    if (event.key === "s") return done(() => this.go("data"));
    if (event.key === "/") return done(() => { if (s.view !== "grid") this.go("grid"); this.search.focus(); });
    if (s.view === "grid") this.keyGrid(event, done);
    if (s.view === "picture") this.keyPicture(event, done);
  }

  keyGrid(event, done) {
    const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.across, ArrowUp: -this.across };
    if (event.key === "o" && this.thumbsChoice) {
      const values = [...this.thumbsChoice.options].map((option) => option.value);
      return done(() => { this.thumbsChoice.value = values[(values.indexOf(this.state.thumbs) + 1) % values.length]; this.set({ thumbs: this.thumbsChoice.value }); });
    }
    if (!(event.key in moves) || !this.order) return;
    done(() => {
      const place = clamp((this.focused ?? -1) + (this.focused === null ? 1 : moves[event.key]), 0, this.order.length - 1);
      this.focused = place;
      const tall = this.sheet.firstChild.offsetHeight, y = Math.floor(place / this.across) * tall;
      if (y < this.scroller.scrollTop || y + tall > this.scroller.scrollTop + this.scroller.clientHeight) this.scroller.scrollTop = y;
      this.layoutGrid();
      this.cells.get(this.order[place])?.focus({ preventScroll: true });
    });
  }

  keyPicture(event, done) {
    const s = this.state, store = this.stores[0], last = store.layers.length - 1, [rows, columns] = store.grid;
    const depth = (by) => this.set({ depth: last ? clamp(this.place(0) + by, 0, last) / last : 1 });
    const move = (dx, dy) => {
      const at = s.at?.x === undefined ? { x: Math.floor(columns / 2) - dx, y: Math.floor(rows / 2) - dy } : { x: Math.floor(s.at.x * columns), y: Math.floor(s.at.y * rows) };
      this.set({ at: { x: (clamp(at.x + dx, 0, columns - 1) + 0.5) / columns, y: (clamp(at.y + dy, 0, rows - 1) + 0.5) / rows }, map: "attention" });
    };
    const heads = (set) => this.set({ heads: this.stores.map(() => set) });
    const actions = {
      n: () => this.step(1), p: () => this.step(-1), "]": () => depth(1), "[": () => depth(-1),
      ArrowLeft: () => move(-1, 0), ArrowRight: () => move(1, 0), ArrowUp: () => move(0, -1), ArrowDown: () => move(0, 1),
      d: () => this.set({ from: !s.from }), c: () => this.set({ at: null }), h: () => heads(null),
      m: () => this.set({ map: this.choices[(this.choices.indexOf(s.map) + 1) % this.choices.length] }),
      o: () => this.set({ overlay: !s.overlay }), t: () => this.set({ mass: s.mass < 1 ? 1 : 0.6 }), e: () => this.set({ common: !s.common }), i: () => this.set({ smooth: !s.smooth }),
      "+": () => this.set({ opacity: clamp(s.opacity + 0.1, 0, 1) }), "-": () => this.set({ opacity: clamp(s.opacity - 0.1, 0, 1) }),
    };
    actions["="] = actions["+"];
    if (/^\d$/.test(event.key) && Number(event.key) < store.heads) return done(() => heads(new Set([Number(event.key)])));
    if (actions[event.key]) done(actions[event.key]);
  }
}

const KEYS = [
  ["g s", "all pictures; the dataset"], ["/", "search"], ["n p", "next and previous picture"], ["[ ]", "one layer back, one on"],
  ["0 – 9", "one head"], ["h", "all heads, their mean"], ["← → ↑ ↓", "another patch (in the grid: another picture; Enter opens it)"],
  ["c", "back to the readout: the row that the model's head reads"], ["d", "what the patch attends to, or who attends to it"],
  ["m", "next map: attention, rollout and others that the store holds"], ["t", "mask: the fewest patches that hold 60 % of the map"],
  ["o", "overlay on and off; in the grid, pictures with maps"], ["+ -", "overlay stronger, weaker"], ["e", "one scale for all maps"],
  ["i", "smooth"], ["l", "light or dark"], ["Esc", "back"], ["?", "these keys"],
];
const SEARCH = [
  "Words are looked for in path, label and predicted class; all must fit.",
  "column:text, column=text, column!text for text; column>4, column<4, column=4 for numbers. Quote names and texts with spaces: \"label probability\"<0.2 predicted:\"tabby cat\".",
  "A statistic of layers and heads (entropy, distance) is searched and sorted by its mean over them.",
];

// The parts of a search: words, and comparisons with a column.
export function terms(query) {
  const found = [];
  for (const [part] of query.matchAll(/(?:"[^"]*"?|[^\s"])+/g)) {
    const split = /^("[^"]+"|[^\s":<>=!]+)([:<>=!])(.*)$/.exec(part), bare = (text) => text.replaceAll('"', "");
    if (split) found.push({ name: bare(split[1]), sign: split[2], value: bare(split[3]) });
    else if (bare(part)) found.push({ name: null, sign: ":", value: bare(part) });
  }
  return found;
}

function toggled(set, value) {
  const found = new Set(set);
  if (!found.delete(value)) found.add(value);
  return found.size ? found : null;
}

// Colours of a map, one pixel a cell; `root` spreads small values. With `mass`, cells beyond the fewest that hold this
// share of the map are dark. With `veil`, what is low lets a picture behind it show through.
export function paint(canvas, values, [rows, columns], { low, high, root, mass, veil } = {}) {
  let least = Infinity, most = -Infinity, sum = 0;
  for (const value of values) {
    least = Math.min(least, value);
    most = Math.max(most, value);
    sum += value;
  }
  const from = root ? 0 : low ?? least, to = high ?? most, span = to - from || 1;
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d"), picture = context.createImageData(columns, rows), cells = new Uint32Array(picture.data.buffer);
  for (let i = 0; i < values.length; i++) {
    const share = clamp((values[i] - from) / span, 0, 1);
    const colour = Math.round(255 * (root ? Math.sqrt(share) : share));
    cells[i] = veil ? ((LUT[colour] & 0x00ffffff) | (Math.round(110 + colour * (145 / 255)) << 24)) >>> 0 : LUT[colour];
  }
  if (mass !== undefined && sum > 0) {
    const order = Array.from(values.keys()).sort((a, b) => values[b] - values[a] || a - b);
    let before = 0;
    for (const i of order) {
      cells[i] = before < mass * sum ? ((cells[i] & 0x00ffffff) | 0x30000000) >>> 0 : LUT[0];
      before += values[i];
    }
  }
  context.putImageData(picture, 0, 0);
  return { low: from, high: to, most, mean: sum / values.length };
}

function ramp(canvas) {
  paint(canvas, Float32Array.from({ length: 256 }, (_, i) => i), [1, 256]);
}

function ticks(low, high) {
  const rough = (high - low) / 4 || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + 1e-9; tick += step) found.push(Math.abs(tick) < step / 1e6 ? 0 : tick);
  return found;
}

export async function mount(root, source) {
  const atlas = new Atlas(root, source);
  try {
    await atlas.start();
  } catch (error) {
    root.replaceChildren(h("p", { class: "failed", text: `The atlas cannot be shown: ${error.message}` }));
  }
  return atlas;
}

// What anywidget calls.
export default {
  render({ model, el }) {
    const root = h("div", { class: "attlas within" });
    el.append(root);
    mount(root, messages(model));
  },
};

const page = globalThis.document?.getElementById("attlas-page");
if (page) mount(page, page.dataset.source === "file" ? embedded() : served());
