package mainjob;

import atelier.assets.v1.*;
import com.google.protobuf.ByteString;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.Code;
import com.google.rpc.ErrorInfo;
import io.grpc.*;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.BlockingClientCall;
import io.grpc.stub.MetadataUtils;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.Callable;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;

/** What any client needs: channels that try again, uploads, watches, and errors in one line. */
final class Client {
  /**
   * gRPC repeats a call that finds no server (UNAVAILABLE), or one that is about to stop
   * (CANCELLED). With its request_id, the repeat makes nothing twice.
   */
  private static final Map<String, ?> AGAIN = Map.of("methodConfig", List.of(Map.of(
      "name", List.of(Map.of()), "waitForReady", true, "retryPolicy", Map.of(
          "maxAttempts", 5.0, "initialBackoff", "0.5s", "maxBackoff", "5s",
          "backoffMultiplier", 2.0,
          "retryableStatusCodes", List.of("UNAVAILABLE", "CANCELLED")))));

  private static final Set<Status.Code> AWAY =
      Set.of(Status.Code.UNAVAILABLE, Status.Code.CANCELLED);

  /** A watch that ends so would end so again. */
  private static final Set<Status.Code> FINAL = Set.of(Status.Code.OUT_OF_RANGE,
      Status.Code.UNAUTHENTICATED, Status.Code.PERMISSION_DENIED, Status.Code.INVALID_ARGUMENT,
      Status.Code.NOT_FOUND);

  /** A call without a deadline would wait for a server for ever. */
  private static final ClientInterceptor DEADLINE = new ClientInterceptor() {
    @Override
    public <Q, A> ClientCall<Q, A> interceptCall(
        MethodDescriptor<Q, A> method, CallOptions options, Channel next) {
      return next.newCall(method, options.withDeadlineAfter(300, TimeUnit.SECONDS));
    }
  };

  /** A channel to the address in an environment variable, with the token on every call. */
  static Channel connect(String variable, String usual) {
    var bearer = new Metadata();
    bearer.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER),
        "Bearer " + System.getenv("ATELIER_TOKEN"));
    return ManagedChannelBuilder.forTarget(System.getenv().getOrDefault(variable, usual))
        .usePlaintext().defaultServiceConfig(AGAIN)
        .intercept(MetadataUtils.newAttachHeadersInterceptor(bearer), DEADLINE).build();
  }

  static String newId() {
    return UUID.randomUUID().toString();
  }

  /**
   * Sends a file in one stream, and again if the server goes away meanwhile: gRPC itself repeats no
   * stream that is larger than its buffer.
   */
  static Asset upload(Channel to, String path, AssetKind kind) throws Exception {
    byte[] data = Files.readAllBytes(Path.of(path));
    var head = UploadHead.newBuilder().setRequestId(newId())
        .setDeclaration(UploadDeclaration.newBuilder().setKind(kind).setMimeType("image/jpeg")
            .setFileName(Path.of(path).getFileName().toString()).setSizeBytes(data.length));
    while (true) {
      var call = UploadServiceGrpc.newBlockingV2Stub(to).upload();
      try {
        call.write(UploadRequest.newBuilder().setHead(head).build());
        for (int at = 0; at < data.length; at += 256 * 1024) {
          int size = Math.min(256 * 1024, data.length - at);
          var chunk = ByteString.copyFrom(data, at, size);
          call.write(UploadRequest.newBuilder().setChunk(chunk).build());
        }
        call.halfClose();
        return call.read().getAsset();
      } catch (StatusException error) {
        if (!AWAY.contains(error.getStatus().getCode())) {
          throw error;
        }
        Thread.sleep(1000);
      }
    }
  }

  /**
   * The items of a stream. Whatever ends it, unless that would come again, it is asked for again;
   * the caller keeps the last cursor in the request.
   */
  static final class Watch<A> implements AutoCloseable {
    private final Callable<BlockingClientCall<?, A>> open;
    private BlockingClientCall<?, A> call;

    Watch(Callable<BlockingClientCall<?, A>> open) {
      this.open = open;
    }

    A next() throws Exception {
      while (true) {
        try {
          call = call == null ? open.call() : call;
          A item = call.read();
          if (item != null) {
            return item;
          }
        } catch (StatusException error) {
          if (FINAL.contains(error.getStatus().getCode())) {
            throw error;
          }
        }
        call = null;
        Thread.sleep(1000);
      }
    }

    @Override
    public void close() {
      call.cancel("seen enough", null);
    }
  }

  /**
   * Repeats a call with `wait` until its job has ended: a server that stops, or a deadline that
   * comes, answers before. The same request waits on.
   */
  static <J> J finished(int completed, Function<J, Integer> state, Callable<J> call)
      throws Exception {
    while (true) {
      J job = call.call();
      if (state.apply(job) == completed) {
        return job;
      } else if (state.apply(job) > completed) { // what else a job can end as
        throw new IllegalStateException(job.toString());
      }
      Thread.sleep(1000);
    }
  }

  /** In one line what went wrong, with what the details of a status say. */
  static String explain(Throwable error) throws InvalidProtocolBufferException {
    var said = StatusProto.fromThrowable(error);
    if (said == null) {
      return error.toString();
    }
    var line = new StringBuilder(Code.forNumber(said.getCode()) + ": " + said.getMessage());
    for (var detail : said.getDetailsList()) {
      if (detail.is(ErrorInfo.class)) {
        var info = detail.unpack(ErrorInfo.class);
        line.append(" [%s %s]".formatted(info.getReason(), info.getMetadataMap()));
      } else if (detail.is(BadRequest.class)) {
        for (var wrong : detail.unpack(BadRequest.class).getFieldViolationsList()) {
          line.append(" [%s: %s]".formatted(wrong.getField(), wrong.getDescription()));
        }
      }
    }
    return line.toString();
  }

  interface Job {
    void run() throws Exception;
  }

  /** Runs it; a failure is told in a line, and is exit status 1. */
  static void run(Job job) throws InvalidProtocolBufferException {
    try {
      job.run();
      System.exit(0);
    } catch (Exception error) {
      System.err.println("main-job: " + explain(error));
      System.exit(1);
    }
  }
}
