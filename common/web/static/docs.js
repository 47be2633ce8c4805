// Renders /openapi.json as something to read.

import { description, token } from "./service.js";
import { failed, find, h, table } from "./dom.js";

const result = find(".result"), form = find("#unlock");

async function show() {
  try {
    const everything = await description();
    form.hidden = true;
    result.replaceChildren();
    const operations = Object.entries(everything.paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, one]) => operation(everything, path, method, one)));
    find("#operations").replaceChildren(...operations);
  } catch (error) {
    form.hidden = false;
    result.replaceChildren(failed(error));
  }
}

function operation(all, path, method, one) {
  const [type, body] = Object.entries(one.requestBody?.content ?? {})[0] ?? [];
  const [status, answer] = Object.entries(one.responses).find(([code]) => code.startsWith("2"));
  const [media, { schema } = {}] = Object.entries(answer.content ?? {})[0] ?? [];
  return h("article", { class: "operation" },
    h("h2", {}, h("span", { class: "method" }, method.toUpperCase()), " ", h("code", {}, path)),
    h("p", {}, one.summary),
    one.parameters?.length ? table("Query", ["Name", "Type", "Default"], one.parameters.map(
      (each) => [h("code", {}, each.name), kind(all, each.schema), String(each.schema.default ?? "")])) : null,
    body ? fields(all, `Body (${type})`, body.schema) : null,
    fields(all, `Answer (${status}, ${media})`, schema));
}

function fields(all, title, schema) {
  const { properties, required = [] } = resolved(all, schema?.items ?? schema) ?? {};
  if (!properties) return h("p", { class: "hint" }, `${title}: ${kind(all, schema) || "see above"}`);
  return table(title + (schema.items ? ": list of" : ""), ["Name", "Type", ""],
    Object.entries(properties).map(([name, each]) => [h("code", {}, name), kind(all, each),
      title.startsWith("Body") && !required.includes(name) ? "optional" : ""]));
}

function resolved(all, schema) {
  return schema?.$ref ? all.components.schemas[schema.$ref.split("/").pop()] : schema;
}

function kind(all, schema) {
  if (!schema) return "";
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    const { properties } = all.components.schemas[name];
    return properties ? `${name} {${Object.keys(properties).join(", ")}}` : name;
  }
  if (schema.anyOf) return schema.anyOf.map((each) => kind(all, each)).join(" or ");
  if (schema.type === "array") return `list of ${kind(all, schema.items)}`;
  const range = schema.minimum === undefined ? "" : `, ${schema.minimum} to ${schema.maximum ?? "∞"}`;
  return (schema.format ?? schema.enum?.join(" or ") ?? schema.type ?? "") + range;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  token.set(find("#token").value.trim());
  show();
});
if (token.get()) show();
else form.hidden = false;
