"use strict";
// Accuracy against FLOPs as SVG, redrawn when its width changes.

const MARGIN = { top: 40, right: 16, bottom: 44, left: 46 };
const COLOURS = 7;
const DASHES = ["", "7 4", "2 3", "9 3 2 3", "4 2", "12 4"];
const MARKERS = [
  "M-4,0A4,4 0 1 0 4,0A4,4 0 1 0 -4,0Z",
  "M-4,-4H4V4H-4Z",
  "M0,-5L5,4H-5Z",
  "M0,-5.5L5.5,0L0,5.5L-5.5,0Z",
  "M0,5L5,-4H-5Z",
  "M-4.5,-1.5H-1.5V-4.5H1.5V-1.5H4.5V1.5H1.5V4.5H-1.5V1.5H-4.5Z",
];
const PRINTED_WIDTH = 680; // CSS pixels between the margins of a sheet of paper
const NEAR = 24; // px from the pointer to a point that it means

/** Colour, dash and marker of a curve, as in the figures (figures.py); with 7 colours and 6 markers the first 42 curves
 * differ in the pair. A network alone, one point, is a larger ring, so that what lies under it is seen. */
function curveStyle(index) {
  return { colour: `colour-${index % COLOURS}`, dash: DASHES[index % 6], marker: MARKERS[index % 6] };
}

function markerClass(curve) {
  return curve.points.length === 1 ? "marker alone" : "marker";
}

/** Round numbers in [low, high], about `count` of them. */
function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw / 1.5);
  const values = [];
  for (let i = Math.ceil(low / step); i * step <= high * (1 + 1e-12); i++) values.push(i * step);
  return values;
}

function padded(values) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const margin = 0.04 * (high - low) || 0.05 * Math.abs(high) || 1;
  return { low: low - margin, high: high + margin };
}

/** What the chart shows: all points and where the threshold leads; zoomed, those near the best accuracy. */
function domain(points, zoomed) {
  const best = Math.max(...points.map((point) => point.accuracy));
  const shown = zoomed ? points.filter((point) => point.accuracy >= best - 0.1) : points;
  const accuracy = padded(shown.map((point) => point.accuracy));
  const flops = padded(shown.map((point) => point.flops));
  return {
    accuracy: { low: Math.max(accuracy.low, -0.02), high: Math.min(accuracy.high, 1.02) },
    flops: { low: Math.max(flops.low, 0), high: flops.high },
  };
}

class Chart {
  /** `extremes` are outcomes at the ends of the slider, so that its marker has room. */
  constructor(report, extremes) {
    this.report = report;
    this.points = report.curves.flatMap((curve, index) =>
      curve.points.map((point, position) => ({ ...point, curve: curve.name, index, position })),
    );
    this.extremes = extremes.map((outcome) => outcome.means);
    this.zoomed = false;
    this.holder = byId("chart");
    this.tooltip = html("div", { class: "tooltip", "aria-hidden": "true", hidden: "" });
    this.drawLegend();
    this.fillTable();
    new ResizeObserver(() => this.draw()).observe(this.holder);
    addEventListener("beforeprint", () => this.draw(PRINTED_WIDTH));
    addEventListener("afterprint", () => this.draw());
  }

  drawLegend() {
    const entries = this.report.curves.map((curve, index) => {
      const { colour, dash, marker } = curveStyle(index);
      const line = svg("path", { d: "M0,8H34", class: "line", "stroke-dasharray": dash });
      const shape = svg("path", { d: marker, class: markerClass(curve), transform: "translate(17,8)" });
      const shapes = curve.points.length === 1 ? [shape] : [line, shape];
      const sample = svg("svg", { width: 34, height: 16, class: colour, "aria-hidden": "true" }, ...shapes);
      return html("li", {}, sample, html("span", { class: "name" }, curve.name));
    });
    const ring = svg("circle", { cx: 9, cy: 8, r: 6, class: "here" });
    const sample = svg("svg", { width: 18, height: 16, "aria-hidden": "true" }, ring);
    byId("legend").replaceChildren(...entries, html("li", {}, sample, this.report.answering ? "the thresholds above" : "the threshold above"));
  }

  fillTable() {
    const cells = (point) => [
      point.curve,
      point.label,
      percent(point.accuracy),
      mflops(point.flops),
      coarsePercent(point.flops / this.report.fullFlops),
    ];
    const row = (point) => html("tr", {}, ...cells(point).map((text) => html("td", {}, text)));
    byId("curve-rows").replaceChildren(...this.points.map(row));
  }

  /** Moves the marker of the threshold. */
  place(outcome) {
    this.here = { ...outcome.means, threshold: outcome.threshold };
    if (this.marker) this.drawHere();
  }

  zoom(zoomed) {
    this.zoomed = zoomed;
    this.draw();
  }

  draw(width = this.holder.clientWidth) {
    if (width === 0) return;
    const height = Math.round(Math.min(440, Math.max(300, 0.45 * width)));
    const { accuracy, flops } = domain([...this.points, ...this.extremes], this.zoomed);
    this.plot = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: height - MARGIN.bottom };
    const { left, right, top, bottom } = this.plot;
    this.x = (value) => left + ((value - flops.low) / (flops.high - flops.low)) * (right - left);
    this.y = (value) => bottom - ((value - accuracy.low) / (accuracy.high - accuracy.low)) * (bottom - top);
    const shown = (point) =>
      point.accuracy >= accuracy.low && point.flops <= flops.high && point.flops >= flops.low;
    this.shown = this.points.filter(shown);
    this.marker = svg("g", { class: "here", "aria-hidden": "true" });
    this.svg = svg(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Accuracy against FLOPs per image. Arrow keys move between points." },
      this.axes(width, height, accuracy, flops),
      svg("clipPath", { id: "plot" }, svg("rect", { x: left, y: top, width: right - left, height: bottom - top })),
      svg("g", { "clip-path": "url(#plot)", "aria-hidden": "true" }, ...this.lines()),
      this.marker,
      ...this.drawPoints(),
    );
    this.listen();
    this.tooltip.hidden = true;
    this.holder.replaceChildren(this.svg, this.tooltip);
    if (this.here) this.drawHere();
  }

  axes(width, height, accuracy, flops) {
    const { left, right, top, bottom } = this.plot;
    const text = (x, y, anchor, content) => svg("text", { x, y, "text-anchor": anchor }, content);
    const group = svg("g", { class: "axes", "aria-hidden": "true" });
    for (const value of ticks(100 * accuracy.low, 100 * accuracy.high, 6)) {
      const y = this.y(value / 100);
      group.append(svg("path", { class: "gridline", d: `M${left},${y}H${right}` }));
      group.append(text(left - 6, y + 4, "end", String(Number(value.toFixed(6)))));
    }
    const columns = Math.max(3, Math.round(width / 130));
    for (const value of ticks(flops.low / 1e6, flops.high / 1e6, columns)) {
      const x = this.x(1e6 * value);
      group.append(svg("path", { class: "gridline", d: `M${x},${top}V${bottom}` }));
      group.append(text(x, bottom + 16, "middle", Number(value.toFixed(6)).toLocaleString("en")));
    }
    const full = this.report.fullFlops / 100;
    for (const value of ticks(flops.low / full, flops.high / full, columns)) {
      const x = this.x(full * value);
      group.append(svg("path", { class: "tick", d: `M${x},${top}v-5` }));
      group.append(text(x, top - 8, "middle", String(Number(value.toFixed(6)))));
    }
    group.append(svg("path", { class: "frame", d: `M${left},${top}H${right}V${bottom}H${left}Z` }));
    group.append(text((left + right) / 2, height - 8, "middle", "MFLOPs per image"));
    group.append(text((left + right) / 2, 12, "middle", "% of the full network's FLOPs"));
    group.append(
      svg("text", { transform: `translate(11,${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, "accuracy (%)"),
    );
    return group;
  }

  lines() {
    return this.report.curves.map((curve, index) => {
      const { colour, dash } = curveStyle(index);
      const points = curve.points.map((point) => `${this.x(point.flops)},${this.y(point.accuracy)}`).join(" ");
      return svg("polyline", { class: `line ${colour}`, points, "stroke-dasharray": dash });
    });
  }

  drawPoints() {
    this.elements = new Map();
    return this.shown.map((point, i) => {
      const { colour, marker } = curveStyle(point.index);
      const element = svg("path", {
        d: marker,
        class: `${markerClass(this.report.curves[point.index])} ${colour}`,
        transform: `translate(${this.x(point.flops)},${this.y(point.accuracy)})`,
        role: "img",
        tabindex: i === 0 ? 0 : -1,
        "aria-label": `${point.curve}, ${this.values(point).join(", ")}`,
      });
      element.addEventListener("focus", () => this.show(point));
      element.addEventListener("blur", () => this.hide());
      element.addEventListener("keydown", (event) => {
        if (event.key === "Enter") this.chosen(point);
        else this.step(event, point);
      });
      this.elements.set(point, element);
      return element;
    });
  }

  values(point) {
    const share = coarsePercent(point.flops / this.report.fullFlops);
    return [point.label, `${percent(point.accuracy)} accuracy`, `${mflops(point.flops)} MFLOPs (${share})`];
  }

  listen() {
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerdown", (event) => this.chosen(this.point(event) ?? { label: "" }));
    this.svg.addEventListener("pointerleave", () => this.hide());
    this.svg.addEventListener("keydown", (event) => event.key === "Escape" && this.hide());
  }

  point(event) {
    const box = this.svg.getBoundingClientRect();
    const distance = (point) =>
      Math.hypot(this.x(point.flops) + box.left - event.clientX, this.y(point.accuracy) + box.top - event.clientY);
    const nearest = this.shown.reduce((best, point) => (best && distance(best) <= distance(point) ? best : point), null);
    const near = nearest && distance(nearest) < NEAR ? nearest : null;
    if (near) this.show(near);
    else this.hide();
    return near;
  }

  /** Left and right along a curve, up and down to the nearest point of the curve listed before or after. */
  step(event, from) {
    const along = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const across = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!along && !across) return;
    event.preventDefault();
    const onCurve = (index) => this.shown.filter((point) => point.index === index);
    if (along) return this.focus(onCurve(from.index).find((point) => point.position === from.position + along));
    let index = from.index + across;
    while (this.report.curves[index] && onCurve(index).length === 0) index += across;
    const gap = (point) => Math.abs(point.flops - from.flops);
    this.focus(onCurve(index).sort((a, b) => gap(a) - gap(b))[0]);
  }

  focus(point) {
    if (!point) return;
    for (const element of this.elements.values()) element.setAttribute("tabindex", -1);
    this.elements.get(point).setAttribute("tabindex", 0);
    this.elements.get(point).focus();
  }

  show(point) {
    this.hide();
    this.elements.get(point).classList.add("shown");
    const lines = this.values(point).map((text) => html("div", {}, text));
    this.tooltip.replaceChildren(html("strong", {}, point.curve), ...lines);
    this.tooltip.hidden = false;
    const x = this.x(point.flops);
    const y = this.y(point.accuracy);
    const width = this.tooltip.offsetWidth;
    const height = this.tooltip.offsetHeight;
    const left = Math.min(Math.max(0, x - width / 2), this.holder.clientWidth - width);
    this.tooltip.style.left = `${left}px`;
    this.tooltip.style.top = `${y - height - 12 >= 0 ? y - height - 12 : y + 14}px`;
  }

  hide() {
    this.tooltip.hidden = true;
    this.svg.querySelector(".shown")?.classList.remove("shown");
  }

  /** A ring where the threshold leads, dashed at the chart's edge if that lies outside. */
  drawHere() {
    const { left, right, top, bottom } = this.plot;
    const x = Math.min(Math.max(this.x(this.here.flops), left), right);
    const y = Math.min(Math.max(this.y(this.here.accuracy), top), bottom);
    const inside = x === this.x(this.here.flops) && y === this.y(this.here.accuracy);
    const guide = svg("path", { class: "guide", d: `M${x},${bottom}V${y}H${left}` });
    const ring = svg("circle", { cx: x, cy: y, r: 8, "stroke-dasharray": inside ? "" : "3 3" });
    this.marker.replaceChildren(guide, ring);
    this.marker.dataset.flops = this.here.flops;
    this.marker.dataset.accuracy = this.here.accuracy;
  }
}
