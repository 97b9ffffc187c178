// Pointer and keys on the pictures: which pixel or region is asked about.

const closed = (polygon) => `M${polygon.map((point) => point.join(" ")).join("L")}Z`;

class PictureInput {
  constructor(explorer) {
    Object.assign(this, { explorer, evidence: explorer.evidence });
    this.listenToStage();
  }

  at(event) {
    const box = event.currentTarget.getBoundingClientRect();
    const { height, width } = this.evidence;
    const x = ((event.clientX - box.left) / box.width) * width;
    const y = ((event.clientY - box.top) / box.height) * height;
    return [Math.min(width, Math.max(0, x)), Math.min(height, Math.max(0, y))];
  }

  inside([x, y]) {
    return [
      Math.min(this.evidence.height - 1, Math.floor(y)),
      Math.min(this.evidence.width - 1, Math.floor(x)),
    ];
  }

  tool() {
    return document.querySelector("input[name=tool]:checked").value;
  }

  listenToStage() {
    for (const stage of [$("stage"), $("context-stage")]) {
      stage.addEventListener("pointerdown", (event) => {
        this.dropped = false;
        if (event.button || (event.pointerType === "touch" && this.tool() === "pixel")) return;
        this.drag = {
          tool: this.tool() === "lasso" ? "lasso" : "rectangle",
          points: [this.at(event)],
          x: event.clientX,
          y: event.clientY,
          far: false,
        };
        stage.setPointerCapture(event.pointerId);
      });
      stage.addEventListener("pointermove", (event) => this.move(event));
      stage.addEventListener("pointerleave", () => {
        this.settle();
        this.explorer.peek(null);
      });
      stage.addEventListener("keydown", (event) => this.key(event));
      stage.addEventListener("pointerup", (event) => this.drop(event));
      stage.addEventListener("pointercancel", () => {
        this.drag = null;
        this.explorer.marks();
      });
      stage.addEventListener("click", (event) => this.click(event));
    }
  }

  move(event) {
    if (this.drag) {
      this.drag.far ||= Math.hypot(event.clientX - this.drag.x, event.clientY - this.drag.y) > 4;
      this.drag.points.push(this.at(event));
      if (this.drag.far) this.explorer.marks(closed(this.polygon()));
      return;
    }
    if (event.pointerType === "touch") return;
    if (this.clicked && Math.hypot(event.clientX - this.clicked[0], event.clientY - this.clicked[1]) < 8) return;
    this.clicked = null;
    this.next = this.inside(this.at(event));
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      if (this.explorer.pinned) return this.explorer.peek(this.evidence.patchAt(...this.next));
      const [y, x] = this.explorer.question.at ?? [-1, -1];
      if (this.next[0] === y && this.next[1] === x) return;
      this.explorer.cursor = this.next;
      this.explorer.ask(this.explorer.pixel(...this.explorer.cursor));
    });
  }

  // Forget where the pointer was; after a click or drop only one that moves on points at a patch.
  settle(event = null) {
    cancelAnimationFrame(this.waiting);
    this.waiting = 0;
    this.clicked = event && [event.clientX, event.clientY];
  }

  polygon() {
    const { tool, points } = this.drag;
    const first = points[0];
    const last = points[points.length - 1];
    return tool === "lasso" ? points : this.rectangle(this.inside(first), this.inside(last));
  }

  rectangle([y0, x0], [y1, x1]) {
    const [left, right] = [Math.min(x0, x1), Math.max(x0, x1) + 1];
    const [top, bottom] = [Math.min(y0, y1), Math.max(y0, y1) + 1];
    return [left, right, right, left].map((x, i) => [x, i < 2 ? top : bottom]);
  }

  askPolygon(polygon, name) {
    const mask = rasterise(polygon, this.evidence.height, this.evidence.width);
    if (mask.indexOf(1) < 0) this.explorer.marks();
    else this.explorer.ask(this.explorer.region(mask, name, closed(polygon)), { keep: true });
  }

  drop(event) {
    const drag = this.drag;
    if (drag && drag.far) {
      this.drag.points.push(this.at(event));
      this.settle(event);
      this.dropped = true; // the click that follows belongs to the drag
      this.askPolygon(this.polygon(), drag.tool === "lasso" ? "drawn region" : "rectangle");
    }
    this.drag = null;
  }

  click(event) {
    if (this.dropped) return;
    this.settle(event);
    const [y, x] = this.inside(this.at(event));
    const { question, pinned } = this.explorer;
    const near =
      question.at && Math.hypot(question.at[0] - y, question.at[1] - x) < 0.02 * this.evidence.width;
    this.explorer.cursor = [y, x];
    this.explorer.ask(this.explorer.pixel(y, x), { keep: !(pinned && near) });
  }

  key(event) {
    const { height, width, effectGrid } = this.evidence;
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const move = moves[event.key];
    if (event.ctrlKey || event.metaKey) return;
    if (move) {
      const cell = [height / effectGrid.rows, width / effectGrid.columns];
      const step = cell.map((side) => (event.altKey ? 1 : Math.max(1, Math.round(side))));
      const { cursor } = this.explorer;
      this.anchor = event.shiftKey ? (this.anchor ?? cursor) : null;
      const moved = cursor.map((place, i) => place + move[i] * step[i]);
      this.explorer.cursor = moved.map((place, i) => Math.min([height, width][i] - 1, Math.max(0, place)));
      if (event.shiftKey) this.askPolygon(this.rectangle(this.anchor, this.explorer.cursor), "rectangle");
      else this.explorer.ask(this.explorer.pixel(...this.explorer.cursor), { speak: true });
    } else if (event.key === "Enter" || event.key === " ") {
      if (this.explorer.question.at)
        this.explorer.ask(this.explorer.question, { keep: !this.explorer.pinned, speak: true });
    } else if (event.key === "h" || event.key === "H") this.explorer.togglePreview();
    else return;
    event.preventDefault();
  }
}
