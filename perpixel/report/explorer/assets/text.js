// The words and numbers of an answer. Text from outside only ever becomes text nodes.

// A number with three significant digits and a true minus sign; the full value stays in the element.
function figures(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  const digits = size >= 99.5 ? size.toFixed(0) : size >= 0.995 ? size.toFixed(2) : size.toPrecision(2);
  const text = size < 0.001 ? size.toExponential(1) : digits;
  return (value < 0 ? "−" : "") + text;
}
const signed = (value) => (value > 0 ? "+" : "") + figures(value);

function number(value, id, text = figures(value)) {
  return element("data", id ? { id, value: String(value) } : { value: String(value) }, text);
}

function percent(share) {
  if (share > 0 && share < 0.01) return "<1 %";
  return share < 1 && share > 0.99 ? ">99 %" : `${Math.round(100 * share)} %`;
}

class AnswerText {
  constructor(data, evidence) {
    Object.assign(this, { data, evidence, unit: evidence.boxes ? "patch" : "segment" });
    for (const node of document.querySelectorAll(".unit")) node.textContent = this.unit;
    for (const node of document.querySelectorAll(".units"))
      node.textContent = evidence.boxes ? "patches" : "segments";
  }

  css(c) {
    return `rgb(${this.data.palette[c].join(" ")})`;
  }

  name(c) {
    return element("span", { class: "name" }, this.data.classes[c]);
  }

  tagged(c) {
    const swatch = element("span", { class: "swatch" });
    swatch.style.background = this.css(c);
    return element("span", { class: "tagged" }, swatch, this.name(c));
  }

  writePatches(answer, chosen) {
    const strongest = Math.max(...answer.effects.map(Math.abs), 0) || 1;
    for (const [id, list, first, kind, none] of [
      ["supporters", answer.supporters, 49, "pro", `No ${this.unit} supports it.`],
      ["opponents", answer.opponents, 65, "con", `No ${this.unit} speaks against it.`],
    ]) {
      const items = list.map((p, i) => {
        const effect = answer.effects[p];
        const bar = element("i");
        bar.style.width = `${Math.max(1, (100 * Math.abs(effect)) / strongest)}%`;
        const badge = String.fromCharCode(first + i);
        const button = element(
          "button",
          {
            type: "button",
            class: `patch ${kind}`,
            "data-patch": String(p),
            "aria-pressed": String(chosen === p),
            title: `Hide ${this.unit} ${badge}`,
          },
          element("span", { class: "badge" }, badge),
          element("span", { class: "where" }, this.evidence.place(p, answer.question)),
          number(effect, "", signed(effect)),
          bar,
        );
        return element("li", {}, button);
      });
      $(id).replaceChildren(...(items.length ? items : [element("li", {}, element("p", {}, none))]));
    }
    $("towards").replaceChildren(this.name(answer.why));
  }

  badge(answer, p) {
    const pro = answer.supporters.indexOf(p);
    const con = answer.opponents.indexOf(p);
    const mark = pro >= 0 ? String(pro + 1) : String.fromCharCode(65 + con);
    return pro < 0 && con < 0 ? `this ${this.unit}` : `${this.unit} ${mark}`;
  }

  // "tree", "tree rather than sky"
  asked({ why, rival }) {
    const { classes } = this.data;
    if (rival === "") return classes[why];
    return rival === "logit" ? `${classes[why]}, its logit alone` : `${classes[why]} rather than ${classes[rival]}`;
  }

  measure({ rival, every }) {
    const what = rival === "" ? "margin" : rival === "logit" ? "logit" : "lead";
    const part = every > 1 ? `, at one pixel in ${every}` : "";
    return `${what} lost with each ${this.unit} hidden${part}`;
  }

  writeQuestion(answer) {
    const { question, label, now } = answer;
    const truth = this.evidence.truth;
    const subject = question.at
      ? `column ${question.at[1]}, row ${question.at[0]}`
      : `${question.name}, ${question.pixels} px`;
    $("headline").replaceChildren(
      this.tagged(label),
      element("small", {}, element("span", { class: "name" }, subject)),
    );
    $("was").textContent = "";
    if (truth && question.at) {
      const actual = truth[question.at[0] * this.evidence.width + question.at[1]];
      $("was").append(
        "truth: ",
        actual < 0 ? "void" : this.name(actual),
        actual < 0 ? "" : actual === label ? " ✓ right" : " ✗ wrong",
      );
    } else if (truth) {
      const valid = Array.from(question.mask.keys()).filter((i) => question.mask[i] && truth[i] >= 0);
      const share = valid.filter((i) => truth[i] === now.labels[i]).length / valid.length;
      $("was").textContent = valid.length
        ? `${percent(share)} of its pixels are labelled right`
        : "truth: void";
    } else if (!question.at) {
      const share = percent(answer.counts[label] / question.pixels);
      $("was").append(`${share} of it is labelled `, this.name(label));
    }
  }

  // The classes of a question's pixels: one, or up to three with their shares.
  called(question, counts) {
    const found = Array.from(counts.keys())
      .filter((c) => counts[c])
      .sort((a, b) => counts[b] - counts[a]);
    if (question.at) return [found, [this.tagged(found[0])]];
    const parts = found.slice(0, 3).map((c) => {
      const share = counts[c] / question.pixels;
      return element("div", {}, number(share, "", percent(share)), " ", this.tagged(c));
    });
    return [found, parts];
  }

  stack(counts, found) {
    return found.map((c) => {
      const part = element("span");
      part.style.background = this.css(c);
      part.style.flexGrow = String(counts[c]);
      return part;
    });
  }

  // The table: now, beside what would be with a patch hidden.
  writeVerdict(answer) {
    const { question, hidden, after, label, why, best, now } = answer;
    const all = this.evidence.kept.length === this.data.classes.length;
    const mean = question.at ? "" : "mean ";
    $("as").replaceChildren("as ", this.name(why));
    for (const name of ["probability", "logit", "margin"]) $(`${name}-name`).textContent = mean + name;
    if (question.at) $("margin-name").append(" over ", this.name(best));
    $("logit-name").parentElement.hidden = this.data.classes.length === 2; // of two classes only the margin counts
    $("preview").disabled = hidden === null;
    $("hidden-title").textContent =
      hidden === null ? "nothing to hide" : `if ${this.badge(answer, hidden)} is hidden`;
    $("none").hidden = hidden !== null;
    $("none").textContent = `No ${this.unit} supports this label: hiding any one would not weaken it.`;
    for (const [found, where, tail] of [
      [now, "called", ""],
      [after, "verdict", "-after"],
    ]) {
      if (!found) {
        for (const id of ["verdict", "stack-after", "probability-cell-after", "logit-cell-after", "margin-cell-after"])
          $(id).replaceChildren("");
        continue;
      }
      const [classes, parts] = this.called(question, found.counts);
      $(where).replaceChildren(...parts);
      $(where).dataset.classes = JSON.stringify(classes);
      $(where).classList.toggle("changed", classes[0] !== label);
      $(`stack${tail}`).replaceChildren(...(question.at ? [] : this.stack(found.counts, classes)));
      const known = all || !tail;
      const share = number(found.probability, `probability${tail}`, percent(found.probability));
      $(`probability-cell${tail}`).replaceChildren(known ? share : "not stored");
      $(`logit-cell${tail}`).replaceChildren(number(found.logit, `logit${tail}`));
      $(`margin-cell${tail}`).replaceChildren(number(found.margin, `margin${tail}`, signed(found.margin)));
    }
  }

  // The answer as one plain sentence or two, for the screen reader.
  sentence(answer) {
    const { question, effects, supporters, opponents } = answer;
    const names = this.data.classes;
    const subject = question.at
      ? `Column ${question.at[1]}, row ${question.at[0]}`
      : `${question.name}, ${question.pixels} pixels`;
    const part = (list, badge, word) =>
      list.length
        ? `${word}: ${this.unit} ${badge}, ${this.evidence.place(list[0], question)}, ${signed(effects[list[0]])}. `
        : "";
    const sentences = [`${subject}: ${names[answer.label]}. `];
    sentences.push(
      `Why ${this.asked(answer)}: probability ${percent(answer.now.probability)}, margin ${signed(answer.now.margin)}. `,
    );
    sentences.push(part(supporters, "1", "Strongest towards it"), part(opponents, "A", "Strongest against it"));
    const { hidden, after } = answer;
    if (after) {
      const called = names[largest(after.counts)];
      sentences.push(`If ${this.badge(answer, hidden)} is hidden: ${called}, margin ${signed(after.margin)}.`);
    } else sentences.push($("none").textContent);
    return sentences.join("");
  }
}
