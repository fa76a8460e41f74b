/* What the panels share: the data on show, and what they may ask for. */

import type { Api, CaseDetail, Finding, Graph, GraphNode, Result, Session, Shown, Status, Verdict } from './api';
import type { Key } from './i18n';
import { has, similarity, t, tn } from './i18n';
import { reason as reasonWords } from './i18n/reasons';
import { K_MIN, type Store, type View } from './state';
import type { Thumbnails } from './thumbnails';

export const QUERY = 'query';

export class Data {
  result: Result | null = null;
  graph: Graph | null = null;
  session: Session | null = null;

  /** Cases by rank, without the centre. */
  get cases(): GraphNode[] {
    return this.graph?.nodes.slice(1) ?? [];
  }

  get centre(): GraphNode | null {
    return this.graph?.nodes[0] ?? null;
  }

  get calibrated(): boolean {
    return this.graph?.calibrated ?? this.result?.calibrated ?? false;
  }

  get verdict(): Verdict | null {
    return this.graph?.verdict ?? this.result?.verdict ?? null;
  }

  node(id: string | null): GraphNode | null {
    return this.graph?.nodes.find((node) => node.id === id) ?? null;
  }

  score(node: { similarity: number }): string {
    return similarity(node.similarity, this.calibrated);
  }
}

export interface Context {
  readonly api: Api;
  readonly store: Store;
  readonly data: Data;
  readonly thumbnails: Thumbnails;
  detail(id: string): Promise<CaseDetail>;
  select(id: string): void;
  open(id: string): void;
  compare(id: string): void;
  more(id: string): void;
  say(words: string): void;
}

/** What identifies a finding in filters and in the address. */
export function findingKey(finding: { system: string; code: string; display: string }): string {
  return `${finding.system} ${finding.code || finding.display}`;
}

/** Whether the legend's filters let a case through. The centre is always shown. */
export function passes(node: GraphNode, view: View): boolean {
  if (node.rank === 0) return true;
  if (view.hidden.includes(node.status)) return false;
  return view.findings.length === 0 || node.findings.some((f) => view.findings.includes(findingKey(f)));
}

/** The keyword that chose the cases: the view's, or the one that an upload brought, where its stored answer is shown. */
export function keywordOf(result: Result | null, view: View): string {
  const stored = view.k === null && view.from === null;
  return view.text || (stored ? (result?.text ?? '') : '');
}

/** A view's k and keyword once one of them is changed; what is not changed stays, an upload's own keyword too. As many
 * as are stored, by the keyword of the upload, and nothing else asked: that is the stored answer itself. */
export function asking(
  result: Result | null,
  view: View,
  change: { k?: number; text?: string },
): Pick<View, 'k' | 'text'> {
  const text = change.text ?? keywordOf(result, view);
  const k = change.k ?? view.k ?? (result && Math.max(K_MIN, result.k));
  const stored = view.from === null && result !== null && k === result.k && text === result.text;
  return stored ? { k: null, text: '' } : { k, text };
}

export function statusWords(status: Status): string {
  return t(`status.${status}` as Key);
}

/** What findings are called, each name once: one diagnosis may be coded in two systems. */
export function findingNames(findings: readonly Finding[]): string[] {
  return [...new Set(findings.map((f) => f.display || f.code))];
}

/** A case in a sentence, for those who cannot see the graph. */
export function describe(node: GraphNode, data: Data): string {
  if (node.rank === 0) return t(node.id === QUERY ? 'graph.query' : 'graph.centre');
  const values = { rank: node.rank, similarity: data.score(node) };
  const findings = findingNames(node.findings).join(', ');
  // isolated (UAX 9): a name written from right to left must not turn round what stands before it
  const isolated = `\u2068${findings}\u2069`;
  if (node.status === 'present' && findings) return t('graph.node_findings', { ...values, findings: isolated });
  return t('graph.node', { ...values, status: statusWords(node.status) });
}

/** The verdict as its headline and why; `text` is the keyword of the view. An upload brings its own, which holds until
 * the node is asked again. A keyword chooses cases only, and the verdict stays about the whole repository: so cases
 * chosen by one are not called similar, and any other verdict says what it is about. */
export function verdictWords(data: Data, text: string): { title: string; why: string; kind: string } | null {
  const kind = data.verdict;
  if (kind === null) return null;
  const n = data.graph ? data.cases.length : (data.result?.k ?? 0);
  const searched = data.graph?.searched ?? data.result?.searched ?? 0;
  if (kind === 'not-searchable') {
    const reason = data.result?.reason ? ` ${t('why.reason', { reason: reasonWords(data.result.reason) })}` : '';
    return { title: t('verdict.not-searchable'), why: t('why.not-searchable') + reason, kind };
  }
  const words = text || (data.graph?.live ? '' : (data.result?.text ?? ''));
  if (n === 0) {
    const why = words ? t('why.nothing_found', { text: words }) : t('why.empty');
    return { title: t('verdict.empty'), why, kind: 'empty' };
  }
  if (words && kind === 'similar') {
    const why = t('why.filtered_similar', { text: words }) + caution(data);
    return { title: t('verdict.filtered', { n }), why, kind };
  }
  const title = kind === 'similar' && n === 1 ? t('verdict.similar_one') : t(`verdict.${kind}` as Key, { n });
  const why = t(`why.${kind}` as Key, { searched, ...tooFew(data, searched) });
  const filtered = words ? ` ${t('why.filtered', { text: words })}` : '';
  return { title, why: why + filtered + caution(data), kind };
}

/** How the cases were found; a plain picture, alone without a modality, does not say who its patient is. */
export function methodWords(result: Result): string {
  return t(result.query.modality ? 'query.method' : 'query.method_picture');
}

/** Of a repository that is too small: how many patients it has, and how many cases of theirs were searched. */
function tooFew(data: Data, searched: number): { few: string; cases: string } {
  const said = data.graph?.reason ?? data.result?.reason ?? '';
  return { few: said ? `${reasonWords(said)}; ` : '', cases: tn('why.cases', searched) };
}

/** Where cases are called similar and none of them is of the modality of the study in question, or where the model
 * learnt from nothing like it: that, said. */
function caution(data: Data): string {
  const { modality = '', untaught = null } = data.result?.query ?? {};
  const asked = modality.split('/');
  const same = !modality || data.cases.some((node) => node.modality.split('/').some((one) => asked.includes(one)));
  const other = data.verdict === 'similar' && !same ? ` ${t('why.other_modality', { modality })}` : '';
  if (!untaught) return other;
  const taught = untaught.taught.map(shownWords).join(', ');
  return `${other} ${t('why.untaught', { taught, shows: shownWords(untaught.shows) })}`;
}

/** What images show: "CT (chest)". */
function shownWords({ modality, region }: Shown): string {
  const regions = region.split('/').filter(Boolean);
  const wordOf = (one: string, key = `region.${one}`) => (has(key) ? t(key) : one);
  const named = regions.map((one) => wordOf(one)).join(', ');
  return [modality, named && `(${named})`].filter(Boolean).join(' ');
}
