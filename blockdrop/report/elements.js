"use strict";
// Small helpers to build and find elements. Text always goes in as text, so nothing in a report can become markup.

const byId = (id) => document.getElementById(id);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function html(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

/** Blocks by stage: [{ stage, blocks: [0, 1, …] }, …], stages from 1. */
function stagesOf(report) {
  let first = 0;
  return report.stageSizes.map((size, index) => {
    const blocks = Array.from({ length: size }, (_, i) => first + i);
    first += size;
    return { stage: index + 1, blocks };
  });
}
