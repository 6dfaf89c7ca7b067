"use strict";
// Scores of one stream against its threshold, and what another threshold would have rejected.

/** Draws `scores` ([number, score, isAnomalous], oldest first) with a line at `threshold` and one at `tried`. */
function drawChart(canvas, scores, threshold, tried, room) {
  const ratio = window.devicePixelRatio || 1;
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio)), height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  const look = getComputedStyle(document.documentElement), tone = (name) => look.getPropertyValue(name).trim();
  const paint = canvas.getContext("2d");
  paint.clearRect(0, 0, width, height);
  const top = chartTop(scores, threshold, tried), row = (score) => height - 4 * ratio - (height - 10 * ratio) * Math.min(score / top, 1);
  const step = width / room;
  scores.forEach(([, score, isAnomalous], place) => {
    const x = width - (scores.length - place - 0.5) * step;
    paint.fillStyle = isAnomalous ? tone("--bad") : tone("--good");
    const y = row(score), size = Math.max(2.5 * ratio, Math.min(step * 0.8, 4 * ratio));
    paint.globalAlpha = 0.25;
    paint.fillRect(x - size / 4, y, size / 2, height - y);
    paint.globalAlpha = 1;
    paint.fillRect(x - size / 2, y - size / 2, size, size);
  });
  const rule = (score, colour, dash) => {
    paint.strokeStyle = colour; paint.lineWidth = 1.5 * ratio; paint.setLineDash(dash.map((part) => part * ratio));
    paint.beginPath(); paint.moveTo(0, row(score)); paint.lineTo(width, row(score)); paint.stroke(); paint.setLineDash([]);
  };
  rule(threshold, tone("--ink"), []);
  if (tried !== null && tried !== threshold) rule(tried, tone("--main"), [5, 4]);
}

/** The score at the chart's upper edge: twice the threshold, unless the one tried is higher. */
function chartTop(scores, threshold, tried) {
  return Math.max(2 * threshold, 1.1 * (tried === null ? 0 : tried));
}

/**
 * How many of `scores` ([number, score, isAnomalous, crop], oldest first) would be rejects at `threshold`; with `smoothing`
 * [n, m] those where n of the last m of the same crop lie above it.
 */
function countRejects(scores, threshold, smoothing) {
  const [n, m] = smoothing || [1, 1], histories = new Map();
  let found = 0;
  for (const [, score, , crop] of scores) {
    const history = histories.get(crop) || [];
    histories.set(crop, history);
    history.push(score > threshold);
    if (history.length > m) history.shift();
    if (history.filter(Boolean).length >= n) found += 1;
  }
  return found;
}
