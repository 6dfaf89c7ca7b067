"use strict";
// Regions of a camera's picture: shown as they hold, drawn with mouse, pen or finger. Corners are camera pixels.

const DRAG = 8; // pixels of the screen: what moves less is a tap

class RegionDrawing {
  /** Draws into the SVG element `svg`; `size()` gives [width, height] of the camera's picture or null. */
  constructor(svg, size) {
    this.svg = svg; this.size = size; this.polygons = []; this.corners = []; this.isOn = false; this.start = null; this.drag = null;
    this.held = {interest: [], ignored: []};
    svg.addEventListener("pointerdown", (event) => this.down(event));
    svg.addEventListener("pointermove", (event) => this.move(event));
    svg.addEventListener("pointerup", (event) => this.up(event));
    svg.addEventListener("pointercancel", () => { this.start = this.drag = null; this.show(); });
  }
  begin() { this.isOn = true; this.polygons = []; this.corners = []; this.show(); }
  end() { this.isOn = false; this.polygons = []; this.corners = []; this.drag = this.start = null; this.show(); }
  undo() { if (this.corners.length) this.corners.pop(); else this.polygons.pop(); this.show(); }
  /** What was drawn; corners that were tapped make a last polygon. */
  drawn() { return this.corners.length >= 3 ? [...this.polygons, this.corners] : this.polygons; }
  hold(interest, ignored) { this.held = {interest, ignored}; this.show(); }
  at(event) {
    const box = this.svg.getBoundingClientRect(), [width, height] = this.size();
    const share = (value) => Math.min(1, Math.max(0, value));
    return [Math.round(10 * width * share((event.clientX - box.left) / box.width)) / 10,
            Math.round(10 * height * share((event.clientY - box.top) / box.height)) / 10];
  }
  down(event) {
    if (!this.isOn || !this.size()) return;
    event.preventDefault();
    this.svg.setPointerCapture(event.pointerId);
    this.start = {x: event.clientX, y: event.clientY, corner: this.at(event)};
  }
  move(event) {
    if (!this.start) return;
    if (Math.hypot(event.clientX - this.start.x, event.clientY - this.start.y) < DRAG && !this.drag) return;
    this.drag = rectangle(this.start.corner, this.at(event));
    this.show();
  }
  up(event) {
    if (!this.start) return;
    if (this.drag) this.polygons.push(rectangle(this.start.corner, this.at(event)));
    else this.corners.push(this.start.corner);
    this.start = this.drag = null;
    this.show();
  }
  show() {
    const size = this.size();
    this.svg.replaceChildren();
    if (!size) return;
    this.svg.setAttribute("viewBox", `0 0 ${size[0]} ${size[1]}`);
    const draw = (corners, kind, tag = "polygon") => {
      const shape = document.createElementNS("http://www.w3.org/2000/svg", tag);
      shape.setAttribute("points", corners.map((corner) => corner.join(",")).join(" "));
      shape.setAttribute("class", kind);
      this.svg.append(shape);
    };
    this.held.interest.forEach((corners) => draw(corners, "interest"));
    this.held.ignored.forEach((corners) => draw(corners, "ignored"));
    this.polygons.forEach((corners) => draw(corners, "draft"));
    if (this.corners.length) draw(this.corners, "draft", this.corners.length < 3 ? "polyline" : "polygon");
    if (this.drag) draw(this.drag, "draft");
  }
}

function rectangle([x, y], [u, v]) { return [[x, y], [u, y], [u, v], [x, v]]; }
