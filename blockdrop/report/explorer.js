"use strict";
// The thresholds, the numbers that follow from them, and the images.

const PAGE_SIZE = 150;
const TILE_SIDE = 64; // CSS pixels, about
const DETAIL_SIDE = 192;
const QUIET = 500; // ms without a change before a screen reader is told

/** Draws one image into a canvas of its own size, which CSS enlarges without smoothing. */
class Thumbnails {
  constructor({ size, cell, columns, perSheet }) {
    Object.assign(this, { size, cell, columns, perSheet });
    this.sheets = [...document.querySelectorAll("img.sheet")];
  }

  /** A whole multiple of the images' size. */
  side(about) {
    return `${this.size * Math.max(1, Math.round(about / this.size))}px`;
  }

  canvas(about) {
    const canvas = html("canvas", { width: this.size, height: this.size, "aria-hidden": "true" });
    canvas.style.width = canvas.style.height = this.side(about);
    return canvas;
  }

  draw(canvas, image) {
    if (canvas.dataset.image === String(image)) return;
    canvas.dataset.image = image;
    const sheet = this.sheets[Math.floor(image / this.perSheet)];
    const place = image % this.perSheet;
    const x = this.cell * (place % this.columns);
    const y = this.cell * Math.floor(place / this.columns);
    const paint = () => {
      if (canvas.dataset.image !== String(image)) return; // another image came while the sheet was loading
      canvas.getContext("2d").drawImage(sheet, x, y, this.size, this.size, 0, 0, this.size, this.size);
    };
    if (sheet.complete) paint();
    else sheet.addEventListener("load", paint, { once: true });
  }
}

/** The share of images that run each block, as bars in stages. */
class Usage {
  constructor(report) {
    this.report = report;
    this.bars = [];
    const stages = stagesOf(report).map(({ stage, blocks }) => this.stage(stage, blocks));
    byId("usage").replaceChildren(...stages);
  }

  stage(stage, blocks) {
    const bars = blocks.map((block) => {
      const bar = html("span", { class: "bar" });
      const value = html("span", { class: "value", "aria-hidden": "true" });
      const unseen = html("span", { class: "unseen" });
      const item = html("li", {}, html("span", { class: "track" }, bar), value, unseen);
      this.bars.push({ block, item, bar, value, unseen });
      return item;
    });
    const range = blocks.length > 1 ? `blocks ${blocks[0]}–${blocks.at(-1)}` : `block ${blocks[0]}`;
    const heading = html("h3", {}, `Stage ${stage} `, html("small", {}, range));
    const group = html("div", { class: `stage stage-${(stage - 1) % 4}` }, heading, html("ol", {}, ...bars));
    group.style.flexGrow = blocks.length;
    return group;
  }

  show(outcome) {
    for (const { block, item, bar, value, unseen } of this.bars) {
      const share = outcome.runsOfBlock[block] / this.report.numImages;
      bar.style.height = `${100 * share}%`;
      value.textContent = integer(100 * share);
      item.title = unseen.textContent = `block ${block}: ${coarsePercent(share)} of the images`;
    }
  }
}

/** The page of images that the filters let through. */
class Grid {
  constructor(report, thumbnails, open) {
    Object.assign(this, { report, thumbnails });
    this.images = [];
    this.current = 0; // place in `images` of the tile that Tab reaches
    this.tiles = Array.from({ length: Math.min(PAGE_SIZE, report.numImages) }, () => this.tile());
    byId("grid").style.setProperty("--side", thumbnails.side(TILE_SIDE));
    byId("grid").replaceChildren(...this.tiles.map((tile) => tile.item));
    byId("grid").addEventListener("keydown", (event) => this.step(event));
    for (const [i, { button }] of this.tiles.entries()) {
      button.addEventListener("focus", () => this.moveTo(this.first + i));
      button.addEventListener("click", () => {
        this.moveTo(this.first + i);
        open(this.images[this.current]);
      });
    }
    byId("previous-page").addEventListener("click", () => this.turn(-1));
    byId("next-page").addEventListener("click", () => this.turn(1));
  }

  tile() {
    const canvas = this.thumbnails.canvas(TILE_SIDE);
    const caption = html("span", { class: "caption" });
    const button = html("button", { type: "button", class: "tile" }, canvas, caption);
    return { item: html("li", {}, button), button, canvas, caption };
  }

  get first() {
    return this.current - (this.current % PAGE_SIZE);
  }

  /** Other images, or the same under another threshold; `restart` goes back to the first page. */
  update(outcome, images, restart) {
    this.outcome = outcome;
    this.images = images;
    this.current = restart ? 0 : Math.min(this.current, Math.max(0, images.length - 1));
    this.show();
  }

  show() {
    this.tiles.forEach((tile, i) => this.showTile(tile, this.first + i));
    const pages = Math.max(1, Math.ceil(this.images.length / PAGE_SIZE));
    const page = this.first / PAGE_SIZE + 1;
    byId("page").textContent = `page ${page} of ${pages}`;
    byId("pages").hidden = pages === 1;
    byId("previous-page").disabled = page === 1;
    byId("next-page").disabled = page === pages;
  }

  showTile({ item, button, canvas, caption }, place) {
    item.hidden = place >= this.images.length;
    if (item.hidden) return;
    const image = this.images[place];
    const used = this.outcome.used[image];
    const answered = this.outcome.answered[image];
    const wrong = !this.outcome.right[image];
    button.tabIndex = place === this.current ? 0 : -1;
    const state = `${image} ${answered} ${used} ${this.outcome.predicted[image]}`;
    if (button.dataset.state === state) return; // most tiles stay as they are when the threshold moves a little
    button.dataset.state = state;
    this.thumbnails.draw(canvas, image);
    const what = answered ? "answered" : `${used}`;
    caption.textContent = wrong ? `${what} ✗` : what;
    button.classList.toggle("wrong", wrong);
    button.dataset.image = image;
    const name = this.report.classes[this.report.labels[image]];
    const predicted = this.report.classes[this.outcome.predicted[image]];
    const verdict = wrong ? `wrong: ${predicted}` : "right";
    button.setAttribute("aria-label", `Image ${image}, ${name}, ${answered ? what : `${used} blocks`}, ${verdict}`);
    button.title = wrong ? `${name}, taken for ${predicted}` : name;
  }

  moveTo(place) {
    if (place === this.current) return;
    this.current = place;
    this.show();
  }

  mark(image) {
    for (const { button } of this.tiles) {
      button.toggleAttribute("aria-current", false);
      if (button.dataset.image === String(image)) button.setAttribute("aria-current", "true");
    }
  }

  turn(pages) {
    this.moveTo(this.first + pages * PAGE_SIZE);
  }

  step(event) {
    const moves = {
      ArrowLeft: -1,
      ArrowRight: 1,
      ArrowUp: -this.columns(),
      ArrowDown: this.columns(),
      PageUp: -PAGE_SIZE,
      PageDown: PAGE_SIZE,
      Home: -this.current,
      End: this.images.length - 1 - this.current,
    };
    if (!(event.key in moves) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const last = this.images.length - 1;
    this.focus(Math.min(Math.max(this.current + moves[event.key], 0), last));
  }

  columns() {
    const tops = this.tiles.filter((tile) => !tile.item.hidden).map((tile) => tile.item.offsetTop);
    return tops.filter((top) => top === tops[0]).length;
  }

  focus(place) {
    this.moveTo(place);
    this.tiles[place - this.first]?.button.focus();
  }

  /** Scrolls as far as it takes to see the current tile. */
  reveal() {
    this.tiles[this.current - this.first]?.item.scrollIntoView({ block: "nearest" });
  }
}

/** One image: what it is, what becomes of it at the threshold, and its policy, block by block. */
class Detail {
  constructor(report, thumbnails, grid) {
    Object.assign(this, { report, thumbnails, grid });
    this.image = null;
    this.panel = byId("detail");
    this.heading = html("h3", { id: "detail-heading", tabindex: "-1" });
    this.canvas = thumbnails.canvas(DETAIL_SIDE);
    this.facts = html("dl", { class: "facts" });
    this.strip = html("div", { class: "strip" });
    this.previous = this.button("Previous", () => this.neighbour(-1));
    this.next = this.button("Next", () => this.neighbour(1));
    const buttons = html("div", { class: "buttons" }, this.previous, this.next);
    buttons.append(this.button("Close", () => this.close()));
    const key = html("p", { class: "hint" }, "● runs, ○ is dropped; bar and number: keep probability; line: threshold");
    const policy = html("h4", {}, "Policy");
    this.parts = [this.heading, buttons, this.canvas, this.facts, policy, key, this.strip];
    this.panel.addEventListener("keydown", (event) => this.press(event));
  }

  /** Escape closes; left and right arrows go to the image before and after, up and down scroll the panel. */
  press(event) {
    if (event.key === "Escape") return this.close();
    const offset = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!offset || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const button = offset < 0 ? this.previous : this.next;
    if (!button.disabled) this.neighbour(offset);
  }

  button(text, act) {
    const button = html("button", { type: "button" }, text);
    button.addEventListener("click", act);
    return button;
  }

  open(image) {
    this.image = image;
    this.show();
    this.heading.focus({ preventScroll: true });
    this.panel.scrollIntoView({ block: "nearest" });
  }

  close() {
    this.image = null;
    this.show();
    this.grid.focus(this.grid.current);
  }

  neighbour(offset) {
    this.grid.current = this.grid.images.indexOf(this.image) + offset;
    this.image = this.grid.images[this.grid.current];
    this.grid.show();
    this.show();
    this.grid.reveal();
  }

  show() {
    const empty = this.image === null;
    this.grid.mark(this.image);
    this.panel.classList.toggle("empty", empty);
    if (empty) {
      this.heading.textContent = "No image chosen";
      this.panel.replaceChildren(this.heading, "Choose one to see its policy.");
      return;
    }
    if (!this.canvas.isConnected) this.panel.replaceChildren(...this.parts);
    const place = this.grid.images.indexOf(this.image);
    this.previous.disabled = place < 1;
    this.next.disabled = place < 0 || place === this.grid.images.length - 1;
    this.heading.textContent = `Image ${this.image}`;
    this.thumbnails.draw(this.canvas, this.image);
    const facts = this.describe(this.grid.outcome, this.image);
    this.facts.replaceChildren(...facts.map(([name, value]) => html("div", {}, html("dt", {}, name), html("dd", {}, value))));
    this.strip.replaceChildren(...stagesOf(this.report).map((stage) => this.stage(stage)));
  }

  describe(outcome, image) {
    const { classes, labels, predictions, numBlocks, fullFlops, losses, answering, answers, confidence } = this.report;
    const full = predictions[(image + 1) * (numBlocks + 1) - 1];
    const verdict = outcome.right[image] ? "✓ right" : "✗ wrong";
    const answer = () => `${classes[answers[image]]} (confidence ${threeDigits(confidence[image])})`;
    const blocks = outcome.answered[image] ? "none: answered" : `${outcome.used[image]} of ${numBlocks}`;
    return [
      ["True class", classes[labels[image]]],
      ["Prediction", `${classes[outcome.predicted[image]]} (${verdict})`],
      ...(answering ? [["Answer", answer()]] : []),
      ["With all blocks", classes[full]],
      ["Blocks used", blocks],
      ["FLOPs", `${mflops(outcome.flops[image])} MFLOPs (${coarsePercent(outcome.flops[image] / fullFlops)} of full)`],
      ["Loss with all blocks", `${threeDigits(Math.max(losses[image], 0))} nats`],
      ["Right with", `${rightWith(this.report, image)} of its most probable blocks`],
    ];
  }

  stage({ stage, blocks }) {
    const cells = blocks.map((block) => this.cell(block));
    const heading = html("h5", {}, `Stage ${stage}`);
    return html("div", { class: `stage stage-${(stage - 1) % 4}` }, heading, html("ol", {}, ...cells));
  }

  cell(block) {
    const { threshold } = this.grid.outcome;
    const keepProb = this.report.keepProbs[this.image * this.report.numBlocks + block];
    const kept = runs(keepProb, threshold) && !this.grid.outcome.answered[this.image];
    const bar = html("span", { class: "bar" });
    bar.style.width = `${100 * keepProb}%`;
    const line = html("span", { class: "line" });
    line.style.left = `${100 * Math.min(Math.max(threshold, 0), 1)}%`;
    const state = html("span", { "aria-hidden": "true" }, kept ? "●" : "○");
    const unseen = html("span", { class: "unseen" }, kept ? "runs" : "is dropped");
    return html(
      "li",
      { class: kept ? "kept" : "dropped", title: `block ${block}: keep probability ${keepProb}` },
      html("span", { class: "name" }, `${block} `, state, unseen),
      html("span", { class: "track", "aria-hidden": "true" }, bar, line),
      html("span", { class: "number" }, threeDigits(keepProb)),
    );
  }
}

/** A threshold: a slider, a number field and a button back to the report's own. */
class ThresholdControl {
  constructor(id, resetId, initial, change) {
    Object.assign(this, { change, slider: byId(id), number: byId(`${id}-number`), printed: byId(`${id}-printed`) });
    this.slider.addEventListener("input", () => this.set(this.slider.valueAsNumber, this.slider));
    this.number.addEventListener("input", () => this.set(this.number.valueAsNumber, this.number));
    this.number.addEventListener("change", () => this.show(this.value));
    byId(resetId).addEventListener("click", () => this.set(initial));
    this.show(initial);
  }

  /** `source` keeps what the person is typing there. */
  set(value, source) {
    if (!Number.isFinite(value)) return;
    this.show(Math.min(Math.max(value, 0), NEVER), source);
    this.change();
  }

  show(value, source) {
    this.value = value;
    if (source !== this.slider) this.slider.value = value;
    if (source !== this.number) this.number.value = value;
    this.slider.setAttribute("aria-valuetext", value);
    this.printed.textContent = value;
  }
}

/** A budget in percent of the full network's FLOPs, which sets the threshold; it shows what is spent. */
class BudgetControl {
  constructor(report, change) {
    Object.assign(this, { report, slider: byId("budget"), number: byId("budget-number") });
    for (const source of [this.slider, this.number]) {
      source.addEventListener("input", () => {
        if (!Number.isFinite(source.valueAsNumber)) return;
        this.source = source;
        change(source.valueAsNumber / 100);
      });
      source.addEventListener("change", () => {
        this.source = null;
        this.show(this.share, this.range);
      });
    }
  }

  /** `range`: shares at the thresholds 1 and 0. What is being moved or typed stays as it is. */
  show(share, range) {
    Object.assign(this, { share, range });
    this.slider.min = Math.floor(1000 * range[0]) / 10;
    this.slider.max = Math.ceil(1000 * range[1]) / 10;
    if (this.source !== this.slider) this.slider.value = 100 * share;
    if (this.source !== this.number) this.number.value = (100 * share).toFixed(1);
    this.slider.setAttribute("aria-valuetext", coarsePercent(share));
  }
}

class Explorer {
  constructor(report) {
    this.report = report;
    const thumbnails = new Thumbnails(report.thumbnails);
    document.querySelectorAll(".answering").forEach((part) => (part.hidden = !report.answering));
    if (!report.answering) document.querySelector("option.answering").remove(); // a hidden one would still be read
    const ends = report.answering ? [0, NEVER] : [NEVER];
    this.chart = new Chart(report, ends.flatMap((end) => [evaluate(report, 0, end), evaluate(report, 1, end)]));
    this.usage = new Usage(report);
    this.grid = new Grid(report, thumbnails, (image) => this.detail.open(image));
    this.detail = new Detail(report, thumbnails, this.grid);
    const change = () => this.scheduleUpdate();
    this.threshold = new ThresholdControl("threshold", "reset", report.threshold, change);
    this.answerThreshold = new ThresholdControl("answer-threshold", "answer-reset", report.answerThreshold, change);
    this.budget = new BudgetControl(report, (share) =>
      this.threshold.set(thresholdWithin(report, share, this.answerThreshold.value)),
    );
    this.chart.chosen = (point) => this.choose(point);
    document.querySelectorAll("form").forEach((form) => form.addEventListener("submit", (event) => event.preventDefault()));
    this.prepareFilters();
    this.update();
  }

  /** A point of a curve that a threshold gives sets it. */
  choose({ label }) {
    const [, answer, value] = label.match(/^(answer )?threshold ([0-9.e-]+)$/) ?? [];
    if (value) (answer ? this.answerThreshold : this.threshold).set(Number(value));
  }

  /** Many changes between two frames cost one update. */
  scheduleUpdate() {
    this.scheduled ??= requestAnimationFrame(() => {
      this.scheduled = null;
      this.update();
    });
  }

  prepareFilters() {
    const { classes, numBlocks } = this.report;
    byId("class").append(...classes.map((name, label) => html("option", { value: label }, name)));
    for (const id of ["least", "most"]) byId(id).max = numBlocks;
    this.clearFilters();
    byId("filters").addEventListener("input", () => this.updateImages(true));
    byId("clear").addEventListener("click", () => {
      this.clearFilters();
      this.updateImages(true);
    });
    byId("zoom").addEventListener("input", (event) => this.chart.zoom(event.target.checked));
  }

  clearFilters() {
    byId("filters").reset();
    byId("least").value = 0;
    byId("most").value = this.report.numBlocks;
  }

  /** An emptied number field doesn't filter. */
  filters() {
    const bound = (id, otherwise) => (byId(id).value === "" ? otherwise : byId(id).valueAsNumber);
    return {
      label: byId("class").value === "" ? null : Number(byId("class").value),
      result: byId("result").value,
      by: byId("by").value,
      least: bound("least", 0),
      most: bound("most", this.report.numBlocks),
      order: byId("order").value,
    };
  }

  update() {
    this.outcome = evaluate(this.report, this.threshold.value, this.answerThreshold.value);
    this.showNumbers();
    const share = (threshold) => meanFlops(this.report, threshold, this.answerThreshold.value) / this.report.fullFlops;
    this.budget.show(this.outcome.means.flops / this.report.fullFlops, [share(1), share(0)]);
    this.chart.place(this.outcome);
    this.usage.show(this.outcome);
    this.updateImages(false);
  }

  showNumbers() {
    const { means, uniquePolicies } = this.outcome;
    byId("accuracy").textContent = percent(means.accuracy);
    byId("blocks").textContent = twoDigits(means.blocks);
    byId("of-blocks").textContent = `of ${this.report.numBlocks}`;
    byId("mflops").textContent = mflops(means.flops);
    byId("share").textContent = `${coarsePercent(means.flops / this.report.fullFlops)} of full`;
    byId("unique").textContent = integer(uniquePolicies);
    byId("answered").textContent = coarsePercent(means.answered);
    byId("answered-accuracy").textContent = means.answered ? `${percent(means.answeredAccuracy)} right` : "";
  }

  updateImages(restart) {
    const images = select(this.report, this.outcome, this.filters());
    this.grid.update(this.outcome, images, restart);
    this.detail.show();
    byId("matching").textContent = this.matching(images);
    this.announceLater();
  }

  matching(images) {
    if (images.length === 0) return "No image matches these filters.";
    const { accuracy, blocks } = means(this.outcome, images);
    const count = `${integer(images.length)} of ${integer(this.report.numImages)} images`;
    return `${count} · accuracy ${percent(accuracy)} · ${twoDigits(blocks)} blocks on average`;
  }

  /** Tells a screen reader, once the changes pause, what others see at once. */
  announceLater() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      const { means, uniquePolicies } = this.outcome;
      const both = this.report.answering ? `, answer threshold ${this.answerThreshold.value}` : "";
      const answered = this.report.answering ? `, ${coarsePercent(means.answered)} answered` : "";
      byId("announcement").textContent =
        `Threshold ${this.threshold.value}${both}: accuracy ${percent(means.accuracy)}, ${twoDigits(means.blocks)} blocks, ` +
        `${mflops(means.flops)} MFLOPs per image, ${integer(uniquePolicies)} policies${answered}. ` +
        byId("matching").textContent;
    }, QUIET);
  }
}

new Explorer(readReport(byId("data").textContent));
