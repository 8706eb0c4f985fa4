"use strict";
// What the report holds, and what follows from the thresholds. Nothing in this file touches the page.

const NEVER = 1.001; // an answer threshold that no probability reaches, at the slider's end
const ARRAY_TYPES = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array };

/** A typed array from its bytes; little-endian, as every machine is that browsers run on. */
function unpack({ type, base64 }) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return new ARRAY_TYPES[type](bytes.buffer);
}

/** The embedded JSON with its arrays unpacked. Matrices are flat, row after row. */
function readReport(json) {
  const report = JSON.parse(json);
  const arrays = ["keepProbs", "predictions", "labels", "losses"];
  report.answering = report.answers !== null;
  if (report.answering) arrays.push("answers", "confidence");
  for (const name of arrays) report[name] = unpack(report[name]);
  report.numImages = report.labels.length;
  report.numBlocks = report.flops.blocks.length;
  report.fullFlops = report.flops.fixed + report.flops.blocks.reduce((sum, cost) => sum + cost, 0);
  report.everyImage = Uint32Array.from(report.labels, (_, image) => image);
  return report;
}

/** Whether a block runs. PyTorch compares in float32, the threshold rounded to it; so do we. */
function runs(keepProb, threshold) {
  return keepProb >= Math.fround(threshold);
}

/** Every image's policy, as far as numbers need it: blocks used, FLOPs, prediction; and sums over the images. No block
 * runs for an image that is answered. */
function evaluate(report, threshold, answerThreshold) {
  const { numImages, numBlocks, keepProbs, predictions, labels, flops, answering, answers, confidence } = report;
  const outcome = {
    threshold,
    answerThreshold,
    answered: new Uint8Array(numImages),
    used: new Uint16Array(numImages),
    flops: new Float64Array(numImages),
    predicted: new Uint32Array(numImages),
    right: new Uint8Array(numImages),
    runsOfBlock: new Uint32Array(numBlocks),
  };
  const limit = Math.fround(threshold);
  const sure = Math.fround(answerThreshold);
  const policies = new Set();
  const policy = new Uint16Array(Math.ceil(numBlocks / 16)); // a bit for each block
  for (let image = 0; image < numImages; image++) {
    let used = 0;
    let cost = flops.fixed + flops.policyNetwork;
    policy.fill(0);
    const answered = answering && confidence[image] >= sure;
    if (answered) cost = flops.policyNetwork;
    for (let block = 0; block < numBlocks && !answered; block++) {
      if (keepProbs[image * numBlocks + block] < limit) continue;
      used++;
      cost += flops.blocks[block];
      outcome.runsOfBlock[block]++;
      policy[block >> 4] |= 1 << (block & 15);
    }
    policies.add(String.fromCharCode(...policy));
    outcome.used[image] = used;
    outcome.flops[image] = cost;
    outcome.answered[image] = answered ? 1 : 0;
    outcome.predicted[image] = answered ? answers[image] : predictions[image * (numBlocks + 1) + used];
    outcome.right[image] = outcome.predicted[image] === labels[image] ? 1 : 0;
  }
  outcome.uniquePolicies = policies.size;
  outcome.means = means(outcome, report.everyImage);
  return outcome;
}

/** Mean FLOPs per image, as `evaluate` counts them. */
function meanFlops(report, threshold, answerThreshold) {
  const { numImages, numBlocks, keepProbs, flops, answering, confidence } = report;
  const limit = Math.fround(threshold);
  const sure = Math.fround(answerThreshold);
  let sum = 0;
  for (let image = 0; image < numImages; image++) {
    sum += flops.policyNetwork;
    if (answering && confidence[image] >= sure) continue;
    sum += flops.fixed;
    for (let block = 0; block < numBlocks; block++) {
      if (keepProbs[image * numBlocks + block] >= limit) sum += flops.blocks[block];
    }
  }
  return sum / numImages;
}

/** The lowest threshold at which images cost at most a share of the full network's FLOPs, or 1 if none is so high. */
function thresholdWithin(report, share, answerThreshold) {
  report.levels ??= Float32Array.from(new Set(report.keepProbs)).sort();
  const { levels, fullFlops } = report;
  let low = 0;
  let high = levels.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (meanFlops(report, levels[middle], answerThreshold) <= share * fullFlops) high = middle;
    else low = middle + 1;
  }
  if (low === 0) return 0;
  return low === levels.length ? 1 : between(levels[low - 1], levels[low]);
}

/** A short number above `below` and at most `most`, both float32. */
function between(below, most) {
  for (let digits = 2; digits < 17; digits++) {
    const value = Number(((below + most) / 2).toPrecision(digits));
    if (Math.fround(value) > below && Math.fround(value) <= most) return value;
  }
  return most;
}

/** Accuracy in [0, 1], blocks used, FLOPs and the answered share over some images; the answered ones' accuracy. */
function means(outcome, images) {
  let right = 0;
  let answered = 0;
  let rightAnswers = 0;
  let blocks = 0;
  let flops = 0;
  for (const image of images) {
    right += outcome.right[image];
    blocks += outcome.used[image];
    flops += outcome.flops[image];
    answered += outcome.answered[image];
    rightAnswers += outcome.answered[image] & outcome.right[image];
  }
  const count = images.length;
  return {
    accuracy: right / count,
    blocks: blocks / count,
    flops: flops / count,
    answered: answered / count,
    answeredAccuracy: rightAnswers / answered,
  };
}

/** The images that the filters let through, in the order wanted; of equal ones the earlier first. */
function select(report, outcome, { label, result, by, least, most, order }) {
  return ordered(report, outcome, order).filter(
    (image) =>
      (label === null || report.labels[image] === label) &&
      (result === "" || (outcome.right[image] === 1) === (result === "right")) &&
      (by === "" || (outcome.answered[image] === 1) === (by === "answer")) &&
      outcome.used[image] >= least &&
      outcome.used[image] <= most,
  );
}

function ordered(report, outcome, order) {
  if (order === "given") return report.everyImage;
  if (order === "fewest") return byBlocksUsed(report, outcome).flat();
  if (order === "most") return byBlocksUsed(report, outcome).reverse().flat();
  if (order === "surest") {
    report.surest ??= sortedBy(report, (image) => -report.confidence[image]);
    return report.surest;
  }
  report.byLoss ??= {
    easiest: sortedBy(report, (image) => report.losses[image]),
    hardest: sortedBy(report, (image) => -report.losses[image]),
  };
  return report.byLoss[order];
}

/** Images by the number of blocks that they use. */
function byBlocksUsed({ numBlocks, everyImage }, { used }) {
  const groups = Array.from({ length: numBlocks + 1 }, () => []);
  for (const image of everyImage) groups[used[image]].push(image);
  return groups;
}

/** Compares with < and >, because the difference of two infinite losses isn't a number. */
function sortedBy(report, key) {
  const keys = Float64Array.from(report.everyImage, key);
  return report.everyImage.slice().sort((a, b) => (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : a - b));
}

/** Of an image's most probable blocks, how many give the right prediction: "5, 7–15"; "no number" if none does. */
function rightWith(report, image) {
  const ranges = [];
  for (let used = 0; used <= report.numBlocks; used++) {
    if (report.predictions[image * (report.numBlocks + 1) + used] !== report.labels[image]) continue;
    const last = ranges.at(-1);
    if (last && last.to === used - 1) last.to = used;
    else ranges.push({ from: used, to: used });
  }
  return ranges.map(({ from, to }) => (from === to ? `${from}` : `${from}–${to}`)).join(", ") || "no number";
}

// Rounds what a number is exactly, halves to even, as Python's format does, so that both show the same digits. (Intl
// rounds the shortest decimal, which for 5.555 is a half, though the number is a little less.)
function numberFormat(digits) {
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits, roundingMode: "halfEven" };
  const format = new Intl.NumberFormat("en", options);
  const isHalf = (value) => /^50*$/.test(value.toFixed(digits + 60).slice(-60));
  return (value) => format.format(Number.isFinite(value) && !isHalf(value) ? Number(value.toFixed(digits)) : value);
}

const integer = numberFormat(0);
const oneDigit = numberFormat(1);
const twoDigits = numberFormat(2);
const threeDigits = numberFormat(3);
const percent = (share) => `${twoDigits(100 * share)}\u00a0%`;
const coarsePercent = (share) => `${oneDigit(100 * share)}\u00a0%`;
const mflops = (flops) => twoDigits(flops / 1e6);
