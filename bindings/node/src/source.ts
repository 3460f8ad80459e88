// What clients and sessions have in common: they emit events to listeners, and are read by
// `for await`.

import { EventEmitter } from 'node:events';
import type { EventName, EventOf, MatrixRTCEvent } from './types.js';

// As many as the library itself keeps for a host that does not read.
const MAX_BACKLOG = 16384;

/** Events for one reader, in order. */
class Stream implements AsyncIterableIterator<MatrixRTCEvent> {
  #backlog: MatrixRTCEvent[] = [];
  #waiting: ((result: IteratorResult<MatrixRTCEvent, undefined>) => void)[] = [];
  #closed = false;
  readonly #forget: (stream: Stream) => void;

  constructor(forget: (stream: Stream) => void) {
    this.#forget = forget;
  }

  push(event: MatrixRTCEvent): void {
    const reader = this.#waiting.shift();
    if (reader) {
      reader({ value: event, done: false });
      return;
    }
    if (this.#backlog.length >= MAX_BACKLOG) {
      // Requests must each be answered; all else can be read again.
      const kept = this.#backlog.filter((e) => e.event === 'request');
      const lost = this.#backlog
        .filter((e) => e.event !== 'request')
        .reduce((sum, e) => sum + (e.event === 'resync_required' ? e.lost : 1), 0);
      const { client, seq, ts } = event;
      this.#backlog = [{ event: 'resync_required', client, seq, ts, lost }, ...kept];
    }
    this.#backlog.push(event);
  }

  close(): void {
    this.#closed = true;
    this.#forget(this);
    for (const reader of this.#waiting.splice(0)) reader({ value: undefined, done: true });
  }

  next(): Promise<IteratorResult<MatrixRTCEvent, undefined>> {
    const value = this.#backlog.shift();
    if (value) return Promise.resolve({ value, done: false });
    if (this.#closed) return Promise.resolve({ value: undefined, done: true });
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  return(): Promise<IteratorResult<MatrixRTCEvent, undefined>> {
    this.#backlog = [];
    this.close();
    return Promise.resolve({ value: undefined, done: true });
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}

/** An EventEmitter of the library's events; every listener gets the event as `types.ts` has it. */
export class EventSource extends EventEmitter<{ [K in EventName]: [event: EventOf<K>] }> {
  #streams = new Set<Stream>();
  #ended = false;

  /** Every event from now on, until the client or session is closed. */
  events(): AsyncIterableIterator<MatrixRTCEvent> {
    const stream = new Stream((gone) => this.#streams.delete(gone));
    if (this.#ended) stream.close();
    else this.#streams.add(stream);
    return stream;
  }

  [Symbol.asyncIterator](): AsyncIterableIterator<MatrixRTCEvent> {
    return this.events();
  }

  /** @internal */
  _deliver(event: MatrixRTCEvent): void {
    for (const stream of this.#streams) stream.push(event);
    (this as EventEmitter).emit(event.event, event);
  }

  /** @internal */
  _end(): void {
    this.#ended = true;
    for (const stream of [...this.#streams]) stream.close();
  }
}
