// What the library refuses.

/** The names of the statuses in the C interface. */
export type ErrorStatus =
  | 'MRTC_ERR_INVALID_ARGUMENT'
  | 'MRTC_ERR_INVALID_HANDLE'
  | 'MRTC_ERR_INVALID_STATE'
  | 'MRTC_ERR_WOULD_DEADLOCK'
  | 'MRTC_ERR_HOMESERVER'
  | 'MRTC_ERR_NETWORK'
  | 'MRTC_ERR_INTERNAL'
  | 'MRTC_ERR_FORKED'
  | 'MRTC_ERR_CLIENT_FAILED'
  | 'MRTC_ERR_NOT_FOUND'
  | 'MRTC_ERR_SFU';

/** Why an SFU cannot be entered. */
export type SFUFailure =
  | 'unreachable'
  | 'refused'
  | 'openid_rejected'
  | 'full'
  | 'no_such_room'
  | 'identity_mismatch'
  | 'untrusted'
  | 'bad_answer';

/** An error object as the library writes it. */
export interface ErrorObject {
  status: ErrorStatus;
  message: string;
  path?: string;
  errcode?: string;
  http_status?: number;
  retry_after_ms?: number;
  reason?: SFUFailure;
  /** The token is dead, the device is not: a new token of it is enough. */
  soft_logout?: true;
}

/** What the library refused, and why. */
export class MatrixRTCError extends Error {
  override readonly name = 'MatrixRTCError';
  readonly status: ErrorStatus;
  /** JSON pointer to the offending field of the argument. */
  readonly path: string | undefined;
  /** What the homeserver said, as `M_FORBIDDEN`. */
  readonly errcode: string | undefined;
  readonly httpStatus: number | undefined;
  readonly retryAfterMs: number | undefined;
  /** With `MRTC_ERR_SFU`. */
  readonly reason: SFUFailure | undefined;

  constructor(error: ErrorObject) {
    super(error.path ? `${error.path}: ${error.message}` : error.message);
    this.status = error.status;
    this.path = error.path;
    this.errcode = error.errcode;
    this.httpStatus = error.http_status;
    this.retryAfterMs = error.retry_after_ms;
    this.reason = error.reason;
  }
}
