// MatrixRTC for Node: who is in a Matrix call, and being in it.

export { Client } from './client.js';
export { MatrixRTCError, type ErrorObject, type ErrorStatus, type SFUFailure } from './errors.js';
export { version } from './library.js';
export { Session } from './session.js';
export { EventSource } from './source.js';
export type * from './types.js';
