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
    return pro < 0 && con < 0 ? `the ${this.unit}` : `${this.unit} ${mark}`;
  }

  writeQuestion(answer) {
    const { question, label, why, best, now } = answer;
    const truth = this.evidence.truth;
    const subject = question.at
      ? `column ${question.at[1]}, row ${question.at[0]}`
      : `${question.name}, ${question.pixels} px`;
    $("headline").replaceChildren(
      this.tagged(label),
      element("small", {}, element("span", { class: "name" }, subject)),
    );
    const mean = question.at ? "" : "mean ";
    $("score").replaceChildren(
      `${mean}logit `,
      number(now.logit, "logit"),
      `, ${mean}margin `,
      number(now.margin, "margin", signed(now.margin)),
    );
    if (why !== label) $("score").prepend("as ", this.name(why), ": ");
    if (question.at) $("score").append(now.margin >= 0 ? " ahead of " : " behind ", this.name(best));
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

  writeVerdict(answer) {
    const { question, hidden, after, label, why, now } = answer;
    $("preview").disabled = hidden === null;
    $("stack").replaceChildren();
    $("after").replaceChildren();
    if (hidden === null) {
      $("hidden-title").textContent = "Nothing to hide";
      $("verdict").textContent = `No ${this.unit} supports this label: hiding any one would not weaken it.`;
      return;
    }
    $("hidden-title").textContent = `If ${this.badge(answer, hidden)} is hidden`;
    $("verdict").replaceChildren();
    const shares = Array.from(after.counts.keys())
      .filter((c) => after.counts[c])
      .sort((a, b) => after.counts[b] - after.counts[a]);
    if (question.at) {
      $("verdict").append(shares[0] === label ? "it stays " : "it becomes ", this.tagged(shares[0]));
    } else {
      shares.slice(0, 3).forEach((c, i) => {
        const share = after.counts[c] / question.pixels;
        const part = [number(share, "", percent(share)), " ", this.tagged(c)];
        $("verdict").append(i ? ", " : "", element("span", { class: "tagged" }, ...part));
      });
      for (const c of shares) {
        const part = element("span");
        part.style.background = this.css(c);
        part.style.flexGrow = String(after.counts[c]);
        $("stack").append(part);
      }
    }
    $("verdict").dataset.classes = JSON.stringify(shares);
    const mean = question.at ? "" : "mean ";
    $("after").append(
      `${mean}logit of `,
      this.name(why),
      " ",
      number(now.logit),
      " → ",
      number(after.logit, "logit-after"),
    );
    if (this.evidence.kept.length === this.data.classes.length) {
      $("after").append(
        `, ${mean}margin `,
        number(now.margin, "", signed(now.margin)),
        " → ",
        number(after.margin, "margin-after", signed(after.margin)),
      );
    }
  }

  // The answer as one plain sentence or two, for the screen reader.
  sentence(answer) {
    const { question, effects, supporters, opponents } = answer;
    const names = this.data.classes;
    const subject = question.at
      ? `Column ${question.at[1]}, row ${question.at[0]}`
      : `${question.name}, ${question.pixels} pixels`;
    const against = answer.rival === null ? "" : ` rather than ${names[answer.rival]}`;
    const part = (list, badge, word) =>
      list.length
        ? `${word}: ${this.unit} ${badge}, ${this.evidence.place(list[0], question)}, ${signed(effects[list[0]])}. `
        : "";
    const sentences = [`${subject}: ${names[answer.label]}. `];
    sentences.push(
      `Why ${names[answer.why]}${against}: logit ${figures(answer.now.logit)}, margin ${signed(answer.now.margin)}. `,
    );
    sentences.push(part(supporters, "1", "Strongest towards it"), part(opponents, "A", "Strongest against it"));
    sentences.push(`${$("hidden-title").textContent}: ${$("verdict").textContent}.`);
    return sentences.join("");
  }
}
