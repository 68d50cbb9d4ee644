"""The script of the page at /v2/docs (page.py): description -> tables, schemas and forms; a form -> a request."""

SCRIPT = r"""
"use strict";
const base = location.pathname.replace(/\/v2\/docs\/?$/, "");
const MOST_SHOWN = 20000;
let api;

function element(tag, options, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options || {})) {
    if (name === "text") made.textContent = value;
    else if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter(child => child !== null));
  return made;
}

function resolve(part) {
  let found = part;
  while (found && found.$ref) found = found.$ref.slice(2).split("/").reduce((at, key) => at[key], api);
  return found || {};
}

function told(schema, indent, seen) {
  const name = schema.$ref && schema.$ref.split("/").pop();
  if (name && seen.includes(name)) return name;
  const inside = name ? [...seen, name] : seen;
  const full = resolve(schema);
  if (full.enum) return full.enum.map(value => JSON.stringify(value)).join(" | ");
  if (full.anyOf) return full.anyOf.map(each => told(each, indent, inside)).join(" | ");
  if (full.type === "array") return "[" + told(full.items || {}, indent, inside) + ", ...]";
  if (full.type !== "object") return full.format || full.type || "anything";
  const pad = "  ".repeat(indent + 1), required = full.required || [];
  const lines = Object.entries(full.properties || {}).map(([key, each]) =>
    pad + key + (required.includes(key) ? ": " : "?: ") + told(each, indent + 1, inside));
  if (full.additionalProperties) lines.push(pad + "...: " + told(full.additionalProperties, indent + 1, inside));
  return lines.length ? "{\n" + lines.join("\n") + "\n" + "  ".repeat(indent) + "}" : "{}";
}

function table(headings, rows) {
  const row = cells => element("tr", {}, ...cells.map(text => element("td", {text: String(text)})));
  const head = element("tr", {}, ...headings.map(text => element("th", {text, scope: "col"})));
  return element("div", {className: "scroll"},
    element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows.map(row))));
}

function tensors() {
  const model = api["x-model"];
  const rows = kind => model[kind + "s"].map(each => [kind, each.name, each.datatype, JSON.stringify(each.shape)]);
  const all = [...rows("input"), ...rows("output")];
  if (!all.length) return [element("p", {className: "no", text: "Nothing is served now: the model is not loaded."})];
  return [
    element("h2", {text: "Model " + model.name}),
    table(["", "name", "datatype", "shape"], all),
    element("p", {className: "muted", text: "-1 is any size from 1. Versions: " + model.versions.join(", ")}),
  ];
}

function pretty(text) {
  return JSON.stringify(JSON.parse(text), null, 1);
}

function hex(bytes) {
  return Array.from(bytes, byte => byte.toString(16).padStart(2, "0")).join(" ");
}

async function shown(answer) {
  const kind = answer.headers.get("content-type") || "";
  if (kind.startsWith("application/json")) {
    const text = await answer.text();
    return (text ? pretty(text) : "").slice(0, MOST_SHOWN);
  }
  if (!kind.startsWith("application/octet-stream")) return (await answer.text()).slice(0, MOST_SHOWN);
  const bytes = new Uint8Array(await answer.arrayBuffer());
  const length = Number(answer.headers.get("inference-header-content-length") || 0);
  const head = length ? pretty(new TextDecoder().decode(bytes.subarray(0, length))) + "\n" : "";
  return head + (bytes.length - length) + " bytes: " + hex(bytes.subarray(length, length + 256));
}

function field(parameter) {
  const schema = resolve(parameter.schema || {});
  const options = {name: parameter.in + ":" + parameter.name, required: !!parameter.required};
  const control = schema.enum
    ? element("select", options, ...(parameter.required ? [] : [element("option", {value: "", text: ""})]),
        ...schema.enum.map(value => element("option", {value, text: value})))
    : element("input", {...options, value: parameter.example || "", autocomplete: "off"});
  const name = element("span", {}, element("code", {text: parameter.name}));
  return element("label", {title: parameter.description || ""}, name, control);
}

function bodyFields(body) {
  const kinds = Object.keys(body.content);
  const kind = element("select", {name: "kind"}, ...kinds.map(value => element("option", {value, text: value})));
  const example = kinds.map(each => body.content[each].example).find(each => each !== undefined);
  const value = example === undefined ? "" : JSON.stringify(example);
  const text = element("textarea", {name: "text", spellcheck: false, value});
  const file = element("input", {type: "file", name: "file"});
  const asText = element("label", {}, element("span", {text: "body"}), text);
  const asFile = element("label", {hidden: true}, element("span", {text: "body: a file, sent as it is"}), file);
  kind.addEventListener("change", () => {
    asText.hidden = kind.value !== "application/json";
    asFile.hidden = !asText.hidden;
  });
  return [element("label", {}, element("span", {text: "content-type"}), kind), asText, asFile];
}

function request(form, verb, path) {
  const headers = {}, data = new FormData(form);
  let target = path;
  for (const [name, value] of data) {
    const [where, parameter] = [name.slice(0, name.indexOf(":")), name.slice(name.indexOf(":") + 1)];
    if (where === "path") target = target.replace("{" + parameter + "}", encodeURIComponent(value));
    if (where === "header" && value !== "") headers[parameter] = value;
  }
  const options = {method: verb.toUpperCase(), headers};
  if (data.has("kind")) {
    headers["content-type"] = data.get("kind");
    options.body = data.get("kind") === "application/json" ? data.get("text") : data.get("file");
  }
  return [base + target, options];
}

function curl(target, options) {
  const headers = Object.entries(options.headers).map(([name, value]) => " -H '" + name + ": " + value + "'").join("");
  const body = options.body === undefined ? "" : " --data-binary @BODY";
  return "curl -X " + options.method + headers + body + " " + location.origin + target;
}

function tryIt(verb, path, operation, parameters) {
  const body = operation.requestBody && resolve(operation.requestBody);
  const output = element("output", {"aria-live": "polite"});
  const button = element("button", {type: "submit", text: "Send"});
  const form = element("form", {},
    element("div", {className: "fields"}, ...parameters.map(field)), ...(body ? bodyFields(body) : []), button, output);
  form.addEventListener("submit", async event => {
    event.preventDefault();
    button.disabled = true;
    const [target, options] = request(form, verb, path);
    const began = performance.now();
    try {
      const answer = await fetch(target, options);
      const text = await shown(answer);
      const took = (performance.now() - began).toFixed(1);
      const headers = [...answer.headers].map(([name, value]) => name + ": " + value).join("\n");
      const status = answer.status + " " + answer.statusText + " in " + took + " ms";
      output.replaceChildren(
        element("p", {className: "status " + (answer.ok ? "ok" : "no"), text: status}),
        element("pre", {text: text || "(no body)", tabIndex: 0}),
        element("h3", {text: "Headers"}), element("pre", {text: headers, tabIndex: 0}),
        element("h3", {text: "The same by curl"}), element("pre", {text: curl(target, options), tabIndex: 0}));
    } catch (error) {
      output.replaceChildren(element("p", {className: "status no", text: "No answer: " + error.message}));
    }
    button.disabled = false;
  });
  return form;
}

function section(verb, path, item) {
  const operation = item[verb];
  const parameters = [...(item.parameters || []), ...(operation.parameters || [])].map(resolve);
  const body = operation.requestBody && resolve(operation.requestBody);
  const inside = element("div", {className: "body"});
  if (operation.description) inside.append(element("p", {text: operation.description}));
  const rows = parameters.map(each => [each.name, each.in, told(each.schema, 0, []), each.description || ""]);
  if (rows.length) inside.append(element("h3", {text: "Parameters"}), table(["name", "in", "values", ""], rows));
  for (const [kind, media] of Object.entries(body ? body.content : {})) {
    inside.append(element("h3", {text: "Body: " + kind}));
    if (media.schema.format !== "binary") inside.append(element("pre", {text: told(media.schema, 0, []), tabIndex: 0}));
  }
  const answers = Object.entries(operation.responses).map(([status, answer]) => [status, resolve(answer).description]);
  inside.append(element("h3", {text: "Answers"}), table(["status", ""], answers));
  const good = ((resolve(operation.responses["200"]).content || {})["application/json"] || {}).schema;
  if (good) inside.append(element("pre", {text: told(good, 0, []), tabIndex: 0}));
  inside.append(element("h3", {text: "Try it"}), tryIt(verb, path, operation, parameters));
  return element("details", {id: verb + path}, element("summary", {},
    element("span", {className: "verb " + verb, text: verb.toUpperCase()}), element("code", {text: path}),
    element("span", {className: "muted", text: operation.summary})), inside);
}

async function main() {
  const about = document.getElementById("about");
  try {
    const answer = await fetch(base + "/v2/openapi.json");
    api = await answer.json();
    if (!answer.ok) throw new Error(api.error);
  } catch (error) {
    about.textContent = "The description cannot be read: " + error.message;
    about.className = "no";
    return;
  }
  document.title = document.getElementById("title").textContent = api.info.title;
  const link = element("a", {href: base + "/v2/openapi.json", text: "openapi.json"});
  about.replaceChildren(api.info.description + " The whole description: ", link);
  document.getElementById("model").replaceChildren(...tensors());
  const operations = document.getElementById("operations");
  for (const {name} of api.tags) {
    operations.append(element("h2", {text: name[0].toUpperCase() + name.slice(1)}));
    for (const [path, item] of Object.entries(api.paths))
      for (const verb of ["get", "post"])
        if (item[verb] && item[verb].tags[0] === name) operations.append(section(verb, path, item));
  }
  const infer = "post/v2/models/" + api["x-model"].name + "/infer";
  const first = document.getElementById(decodeURIComponent(location.hash.slice(1)) || infer);
  if (first) first.open = true;
}
main();
"""
