// The library through the other FFI of Node.

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { test } from 'node:test';

interface FFI {
  Library(path: string, functions: Record<string, [string, string[]]>): Record<string, (...args: unknown[]) => unknown>;
}

test('ffi-napi loads the library and calls it', () => {
  const ffi = createRequire(import.meta.url)('@2060.io/ffi-napi') as FFI;
  const path =
    process.env['MATRIXRTC_LIBRARY'] ?? fileURLToPath(new URL('../../../../build/libmatrixrtc.so', import.meta.url));
  const lib = ffi.Library(path, {
    mrtc_abi_version: ['int', []],
    mrtc_version: ['string', []],
    mrtc_status_name: ['string', ['int32']],
    mrtc_client_new: ['int32', ['string', 'pointer', 'pointer']],
    mrtc_client_free: ['int32', ['uint64', 'pointer']],
  });
  assert.equal(lib['mrtc_abi_version']?.(), 1);
  assert.match(String(lib['mrtc_version']?.()), /^\d+\.\d+\.\d+/);
  const handle = Buffer.alloc(8);
  const config = '{"mode":"host_driven","user_id":"@us:example.org","device_id":"D"}';
  assert.equal(lib['mrtc_client_new']?.(config, handle, null), 0);
  const client = String(handle.readBigUInt64LE());
  assert.equal(lib['mrtc_client_free']?.(client, null), 0);
  const again = lib['mrtc_client_free']?.(client, null);
  assert.equal(lib['mrtc_status_name']?.(again), 'MRTC_ERR_INVALID_HANDLE');
});
