/* Elements without markup strings: whatever a DICOM string holds becomes text, never HTML. */

type Child = Node | string | number | null | undefined | false;
type Listener = (event: Event) => void;
type Value = string | number | boolean | null | undefined | Listener;

const SVG = 'http://www.w3.org/2000/svg';

/** An element; `onclick`-like keys become listeners, `true` an empty attribute, false and null none at all. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Record<string, Value> = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  apply(element, attributes);
  append(element, children);
  return element;
}

/** The same for SVG. */
export function svg(tag: string, attributes: Record<string, Value> = {}, ...children: Child[]): SVGElement {
  const element = document.createElementNS(SVG, tag) as SVGElement;
  apply(element, attributes);
  append(element, children);
  return element;
}

/** A string from outside (a finding, a name): its own direction, isolated, whole in the tooltip when it is cut off. */
export function foreign(text: string, className = ''): HTMLElement {
  return h('bdi', { dir: 'auto', class: className || null, title: text.length > 24 ? text : null }, text);
}

/** Replace what is in a parent. */
export function fill(parent: Element, ...children: Child[]): void {
  parent.replaceChildren(...children.filter(present).map(toNode));
}

function append(parent: Element, children: Child[]): void {
  for (const child of children) {
    if (present(child)) parent.append(toNode(child));
  }
}

function present(child: Child): child is Node | string | number {
  return child !== null && child !== undefined && child !== false && child !== '';
}

function toNode(child: Node | string | number): Node {
  return child instanceof Node ? child : document.createTextNode(String(child));
}

function apply(element: Element, attributes: Record<string, Value>): void {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === 'function') element.addEventListener(name.replace(/^on/, ''), value);
    else element.setAttribute(name, value === true ? '' : String(value));
  }
}

/** The element with this id, which the page is known to have. */
export function byId<T extends HTMLElement>(id: string): T {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`no element #${id}`);
  return element as T;
}
