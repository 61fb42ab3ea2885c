// What any client needs: channels that try again, uploads, watches, and errors in one line.
import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import { setTimeout as pause } from "node:timers/promises";

import type { MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import type { CallOptions, Interceptor, Transport } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

import type { Asset, AssetKind } from "./gen/atelier/assets/v1/asset_pb.js";
import { UploadService } from "./gen/atelier/assets/v1/upload_pb.js";
import type { UploadRequestSchema } from "./gen/atelier/assets/v1/upload_pb.js";
import { BadRequestSchema, ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";

// How a call ends that finds no server, or one that has begun to stop, or that loses it.
const away = [Code.Unavailable, Code.Canceled];

// A watch that ends so would end so again.
const final = [
  Code.OutOfRange,
  Code.Unauthenticated,
  Code.PermissionDenied,
  Code.InvalidArgument,
  Code.NotFound,
];

// The token goes with every call. A call that is no stream is repeated when the server is away:
// with its requestId, the repeat makes nothing twice.
const again: Interceptor = (next) => async (request) => {
  request.header.set("authorization", `Bearer ${process.env.ATELIER_TOKEN}`);
  for (let tries = 1; ; tries++) {
    try {
      return await next(request);
    } catch (error) {
      const { code } = ConnectError.from(error);
      if (request.stream || !away.includes(code) || tries === 5) throw error;
      await pause(Math.min(500 * 2 ** tries, 5000));
    }
  }
};

// A transport to the address in an environment variable.
export function connect(variable: string, usual: string): Transport {
  const baseUrl = `http://${process.env[variable] || usual}`;
  return createGrpcTransport({ baseUrl, interceptors: [again], defaultTimeoutMs: 300_000 });
}

// Sends a file in one stream, and again if the server goes away meanwhile.
export async function upload(to: Transport, path: string, kind: AssetKind): Promise<Asset> {
  const data = await readFile(path);
  const requestId = randomUUID();
  async function* parts(): AsyncIterable<MessageInitShape<typeof UploadRequestSchema>> {
    const fileName = basename(path);
    const sizeBytes = BigInt(data.length);
    const declaration = { kind, fileName, mimeType: "image/jpeg", sizeBytes };
    yield { part: { case: "head", value: { requestId, declaration } } };
    for (let at = 0; at < data.length; at += 256 * 1024) {
      yield { part: { case: "chunk", value: data.subarray(at, at + 256 * 1024) } };
    }
  }
  for (;;) {
    try {
      return (await createClient(UploadService, to).upload(parts())).asset!;
    } catch (error) {
      if (!away.includes(ConnectError.from(error).code)) throw error;
      await pause(1000);
    }
  }
}

// The items of a stream. Whatever ends it, unless that would come again, it is asked for again; the
// caller keeps the last cursor in the request.
export async function* watch<Q, A>(
  request: Q,
  open: (request: Q, options: CallOptions) => AsyncIterable<A>,
): AsyncGenerator<A> {
  const done = new AbortController();
  try {
    for (;;) {
      try {
        yield* open(request, { signal: done.signal });
      } catch (error) {
        if (final.includes(ConnectError.from(error).code)) throw error;
      }
      await pause(1000);
    }
  } finally {
    done.abort();
  }
}

// Repeats a call with `wait` until its job has ended: a server that stops, or a deadline that
// comes, answers before. The same request waits on.
export async function finished<J extends { state: number; errorMessage: string }>(
  completed: J["state"],
  call: () => Promise<J>,
): Promise<J> {
  for (;;) {
    const job = await call();
    if (job.state === completed) return job;
    if (job.state > completed) throw new Error(job.errorMessage); // what else a job can end as
    await pause(1000);
  }
}

// In one line what went wrong, with what the details of a status say.
export function explain(error: unknown): string {
  const said = ConnectError.from(error);
  let line = `${Code[said.code]}: ${said.rawMessage}`;
  for (const info of said.findDetails(ErrorInfoSchema)) {
    line += ` [${info.reason} ${JSON.stringify(info.metadata)}]`;
  }
  for (const wrong of said.findDetails(BadRequestSchema).flatMap((bad) => bad.fieldViolations)) {
    line += ` [${wrong.field}: ${wrong.description}]`;
  }
  return line;
}
