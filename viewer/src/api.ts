/* The node's API, typed. A node that does not answer is asked again until it does; every other refusal is an ApiError. */

import type { Outline, Place } from './pane/outline';

export type Status = 'present' | 'none' | 'unknown';
export type Verdict = 'similar' | 'none' | 'repository-too-small' | 'not-searchable';

export interface Session {
  mode: 'local' | 'users';
  user: string | null;
  admin: boolean;
  scope: string | null;
  csrf: string;
  language: 'en' | 'es';
}

export interface Finding {
  system: string;
  code: string;
  display: string;
  source?: string;
}

/** What images show, as headers say; several as "ABDOMEN/CHEST". */
export interface Shown {
  modality: string;
  region: string;
}

export interface Result {
  id: string;
  kind: 'answer' | 'upload';
  expires: number | null;
  verdict: Verdict;
  reason: string;
  p: number | null;
  calibrated: boolean;
  searched: number;
  k: number;
  query: { modality: string; slices: number; untaught: { taught: Shown[]; shows: Shown } | null };
  model_id: string;
  /** Whether `why` can answer. */
  explains: boolean;
  /** Dice of what the model can outline; null where it outlines nothing. */
  outlines: Record<Outline, number | null> | null;
  organisation: string;
  text: string;
}

export interface GraphNode {
  id: string;
  rank: number;
  similarity: number;
  distance: number;
  angle: number;
  status: Status;
  findings: Finding[];
  modality: string;
  body_part: string;
  subject: string;
  has_picture: boolean;
}

export interface Graph {
  live: boolean;
  verdict: Verdict;
  reason: string;
  p: number | null;
  calibrated: boolean;
  searched: number;
  from: string | null;
  total: number;
  nodes: GraphNode[];
  edges: [number, number, number][];
}

export interface Series {
  index: number;
  description: string;
  modality: string;
  frames: number;
  rows: number;
  columns: number;
  spacing: [number, number] | null;
  monochrome1: boolean;
  window: [number, number];
  presets?: { name: string; center: number; width: number }[];
  /** Whether `masks` can be asked for. */
  outlined: boolean;
}

export interface Match {
  series: number;
  frame: number;
  /** null where the query's slices are no longer kept. */
  query_series: number | null;
  query_frame: number | null;
  similarity: number;
}

export interface CaseDetail {
  id: string;
  rank: number | null;
  subject: string;
  modality: string;
  body_part: string;
  manufacturer: string;
  organisation: string;
  age_band: string;
  sex: string;
  source: string;
  status: Status;
  findings: Finding[];
  series: Series[];
  best: Match[];
}

export interface Why {
  rows: number;
  columns: number;
  case: number[][];
  query: number[][];
  /** Where the grid lies on the frame. */
  case_place: Place;
  query_place: Place;
  similarity: number;
}

export type Stage = 'received' | 'de-identified' | 'embedded' | 'searched' | 'done';

export interface QueryState {
  id: string;
  state: 'queued' | 'running' | 'done' | 'failed';
  stage: Stage;
  progress: number;
  error?: { code: string; detail: string } | null;
}

/** What the node refused, from its problem details (RFC 9457). */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    readonly detail: string,
    readonly retryAfter: number | null = null,
  ) {
    super(`${status} ${code}`);
  }
}

const API = '/api/v1';
const BACKOFF_MS = [500, 1000, 2000, 4000, 8000, 15000];
const GONE = new Set([502, 503, 504]);
const PATIENCE = 3; // times that a 429 is waited for
const TIMEOUT_MS = 60000;

export interface Connection {
  /** The node does not answer; it is asked again in `seconds`. */
  lost(seconds: number): void;
  back(): void;
  /** Asked too often: the request goes out again in `seconds`. */
  busy(seconds: number): void;
  signedOut(): void;
}

export class Api {
  private gone = 0;
  private wake = new Set<() => void>();

  constructor(
    readonly result: string,
    private readonly connection: Connection,
  ) {
    addEventListener('online', () => this.tryNow());
  }

  /** Ends the waiting of every request that is waiting for the node. */
  tryNow(): void {
    for (const wake of this.wake) wake();
  }

  session(): Promise<Session> {
    return this.json(this.result ? `/session?result=${part(this.result)}` : '/session');
  }

  /** Whether the node has ended the session. */
  async signOut(csrf: string): Promise<boolean> {
    try {
      const response = await fetch('/sign-out', { method: 'POST', headers: { 'X-Dicomnode-CSRF': csrf } });
      return response.ok || response.status === 401;
    } catch {
      return false;
    }
  }

  about(signal?: AbortSignal): Promise<Result> {
    return this.json(this.path(''), signal);
  }

  graph(parameters: URLSearchParams, signal?: AbortSignal): Promise<Graph> {
    const asked = parameters.toString();
    return this.json(this.path(`/graph${asked ? `?${asked}` : ''}`), signal);
  }

  case(id: string, signal?: AbortSignal): Promise<CaseDetail> {
    return this.json(this.path(`/cases/${part(id)}`), signal);
  }

  async atlas(ids: string[], size: number, signal?: AbortSignal): Promise<ImageBitmap> {
    const response = await this.ask(this.atlasPath(ids, size), signal);
    return createImageBitmap(await response.blob());
  }

  /** Address of one picture, for an <img>. */
  picture(id: string, size: number): string {
    return API + this.atlasPath([id], size);
  }

  async frame(id: string, series: number, frame: number, signal?: AbortSignal): Promise<Int16Array> {
    const response = await this.ask(this.path(`/cases/${part(id)}/series/${series}/frames/${frame}`), signal);
    const bytes = await response.arrayBuffer();
    return new Int16Array(bytes, 0, bytes.byteLength >> 1);
  }

  /** What the network outlines in a slice, as a picture; see `pane/outline`. */
  async masks(id: string, series: number, frame: number, signal?: AbortSignal): Promise<ImageData> {
    const response = await this.ask(this.path(`/cases/${part(id)}/series/${series}/frames/${frame}/masks.png`), signal);
    const picture = await createImageBitmap(await response.blob(), { colorSpaceConversion: 'none' });
    const ink = new OffscreenCanvas(picture.width, picture.height).getContext('2d', { willReadFrequently: true });
    if (ink === null) throw new Error('no canvas');
    ink.drawImage(picture, 0, 0);
    return ink.getImageData(0, 0, picture.width, picture.height);
  }

  why(id: string, match: Match, signal?: AbortSignal): Promise<Why> {
    const asked = new URLSearchParams({
      query_series: String(match.query_series ?? 0),
      query_frame: String(match.query_frame ?? 0),
      series: String(match.series),
      frame: String(match.frame),
    });
    return this.json(this.path(`/cases/${part(id)}/why?${asked}`), signal);
  }

  contactSheet(kind: 'png' | 'pdf', language: string): string {
    return `${API}${this.path(`/contact-sheet.${kind}`)}?lang=${language}`;
  }

  query(id: string, signal?: AbortSignal): Promise<QueryState> {
    return this.json(`/queries/${part(id)}`, signal);
  }

  events(id: string): EventSource {
    return new EventSource(`${API}/queries/${part(id)}/events`);
  }

  async cancel(id: string, csrf: string): Promise<void> {
    await fetch(`${API}/queries/${part(id)}`, { method: 'DELETE', headers: { 'X-Dicomnode-CSRF': csrf } });
  }

  /** Send files; the body is sent once only, a lost connection is the caller's to tell. */
  send(body: FormData, csrf: string, sent: (share: number) => void, signal: AbortSignal): Promise<QueryState> {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open('POST', `${API}/queries`);
      request.setRequestHeader('X-Dicomnode-CSRF', csrf);
      request.setRequestHeader('Accept', 'application/json');
      request.upload.addEventListener('progress', (event) => {
        if (event.lengthComputable) sent(event.loaded / event.total);
      });
      request.addEventListener('load', () => {
        if (request.status === 401) this.connection.signedOut();
        if (request.status < 300) resolve(JSON.parse(request.responseText) as QueryState);
        else reject(problem(request.status, request.responseText, request.getResponseHeader('Retry-After')));
      });
      request.addEventListener('error', () => reject(new ApiError(0, 'unreachable', '')));
      request.addEventListener('abort', () => reject(new DOMException('cancelled', 'AbortError')));
      signal.addEventListener('abort', () => request.abort());
      request.send(body);
    });
  }

  private path(rest: string): string {
    return `/results/${part(this.result)}${rest}`;
  }

  private atlasPath(ids: string[], size: number): string {
    return this.path(`/atlas?size=${size}&cases=${ids.map(part).join(',')}`);
  }

  private async json<T>(path: string, signal?: AbortSignal): Promise<T> {
    const response = await this.ask(path, signal);
    return (await response.json()) as T;
  }

  private async ask(path: string, signal?: AbortSignal): Promise<Response> {
    for (let tries = 0, refused = 0; ; ) {
      const response = await this.once(path, signal);
      if (response !== null && !GONE.has(response.status)) {
        if (tries > 0) this.answered();
        if (response.ok) return response;
        if (response.status === 401) this.connection.signedOut();
        const error = problem(response.status, await response.text(), response.headers.get('Retry-After'));
        if (response.status !== 429 || ++refused > PATIENCE) throw error;
        const seconds = Math.min(error.retryAfter ?? 2, 60);
        this.connection.busy(seconds);
        await this.wait(seconds * 1000, signal);
        continue;
      }
      const pause = BACKOFF_MS[Math.min(tries, BACKOFF_MS.length - 1)] ?? 15000;
      if (tries++ === 0) this.gone++;
      this.connection.lost(Math.ceil(pause / 1000));
      try {
        await this.wait(pause * (0.85 + 0.3 * Math.random()), signal);
      } catch (error) {
        this.answered();
        throw error;
      }
    }
  }

  private answered(): void {
    this.gone = Math.max(0, this.gone - 1);
    if (this.gone === 0) this.connection.back();
  }

  /** One request; null where nobody answers. */
  private async once(path: string, signal?: AbortSignal): Promise<Response | null> {
    const limit = AbortSignal.timeout(TIMEOUT_MS);
    try {
      return await fetch(API + path, {
        credentials: 'same-origin',
        signal: signal ? AbortSignal.any([signal, limit]) : limit,
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      return null;
    }
  }

  private wait(milliseconds: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const end = () => {
        clearTimeout(timer);
        this.wake.delete(end);
        signal?.removeEventListener('abort', stop);
        resolve();
      };
      const stop = () => {
        clearTimeout(timer);
        this.wake.delete(end);
        reject(signal?.reason);
      };
      const timer = setTimeout(end, milliseconds);
      this.wake.add(end);
      signal?.addEventListener('abort', stop);
    });
  }
}

function part(text: string): string {
  return encodeURIComponent(text);
}

/** Problem details, or what can be said without them. */
export function problem(status: number, body: string, retryAfter: string | null): ApiError {
  const seconds = retryAfter === null ? Number.NaN : Number(retryAfter);
  const wait = Number.isFinite(seconds) ? Math.max(0, seconds) : null;
  try {
    const told = JSON.parse(body) as { code?: unknown; detail?: unknown };
    return new ApiError(status, String(told.code ?? 'error'), String(told.detail ?? ''), wait);
  } catch {
    return new ApiError(status, 'error', '', wait);
  }
}

/** A request given up because something newer was asked. */
export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === 'AbortError';
}
