// What any client needs: channels that try again, uploads, watches, and errors in one line.
package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"iter"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	assets "mainjob/gen/atelier/assets/v1"
)

// gRPC repeats a call that finds no server (UNAVAILABLE), or one that is about to stop (CANCELLED).
// With its request_id, the repeat makes nothing twice.
const again = `{"methodConfig": [{"name": [{}], "waitForReady": true, "retryPolicy": {
	"maxAttempts": 5, "initialBackoff": "0.5s", "maxBackoff": "5s", "backoffMultiplier": 2,
	"retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"]}}]}`

// connect gives a channel to the address in an environment variable.
func connect(variable, usual string) *grpc.ClientConn {
	return must(grpc.NewClient(cmp.Or(os.Getenv(variable), usual),
		grpc.WithDefaultServiceConfig(again),
		grpc.WithTransportCredentials(insecure.NewCredentials())))
}

// upload sends a file in one stream, and again if the server goes away meanwhile: gRPC itself
// repeats no stream that is larger than its buffer.
func upload(ctx context.Context, to *grpc.ClientConn, path string,
	kind assets.AssetKind) *assets.Asset {
	data := must(os.ReadFile(path))
	head := &assets.UploadHead{RequestId: uuid.NewString(), Declaration: &assets.UploadDeclaration{
		Kind: kind, FileName: filepath.Base(path), MimeType: "image/jpeg",
		SizeBytes: int64(len(data))}}
	for {
		stream := must(assets.NewUploadServiceClient(to).Upload(ctx))
		stream.Send(&assets.UploadRequest{Part: &assets.UploadRequest_Head{Head: head}})
		for chunk := range slices.Chunk(data, 256*1024) {
			stream.Send(&assets.UploadRequest{Part: &assets.UploadRequest_Chunk{Chunk: chunk}})
		} // what went wrong in Send, CloseAndRecv says
		answer, err := stream.CloseAndRecv()
		if code := status.Code(err); code != codes.Unavailable && code != codes.Canceled {
			return must(answer, err).Asset
		}
		time.Sleep(time.Second)
	}
}

// A watch that ends so would end so again.
var final = []codes.Code{codes.OutOfRange, codes.Unauthenticated, codes.PermissionDenied,
	codes.InvalidArgument, codes.NotFound}

// watch gives the items of a stream. Whatever else ends it, it is asked for again; the caller keeps
// the last cursor in the request.
func watch[Q, A any](ctx context.Context, request *Q,
	open func(context.Context, *Q, ...grpc.CallOption) (grpc.ServerStreamingClient[A], error),
) iter.Seq[*A] {
	return func(yield func(*A) bool) {
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		for {
			stream, err := open(ctx, request)
			for err == nil {
				var item *A
				if item, err = stream.Recv(); err == nil && !yield(item) {
					return
				}
			}
			if slices.Contains(final, status.Code(err)) || ctx.Err() != nil {
				fail(explain(err))
			}
			time.Sleep(time.Second)
		}
	}
}

// finished repeats a call with `wait` until its job has ended: a server that stops, or a deadline
// that comes, answers before. The same request waits on.
func finished[S ~int32, J interface {
	GetState() S
	GetErrorMessage() string
}](completed S, call func() J) J {
	for {
		job := call()
		if job.GetState() == completed {
			return job
		} else if job.GetState() > completed { // what else a job can end as
			fail(job.GetErrorMessage())
		}
		time.Sleep(time.Second)
	}
}

// download saves what a signed URL gives.
func download(url, path string) {
	answer := must(http.Get(url))
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		fail(answer.Status)
	}
	must(0, os.WriteFile(path, must(io.ReadAll(answer.Body)), 0o644))
}

// explain says in one line what went wrong, with what the details of a status say.
func explain(err error) string {
	said := status.Convert(err)
	line := fmt.Sprintf("%v: %s", said.Code(), said.Message())
	for _, detail := range said.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			line += fmt.Sprintf(" [%s %v]", detail.Reason, detail.Metadata)
		case *errdetails.BadRequest:
			for _, wrong := range detail.FieldViolations {
				line += fmt.Sprintf(" [%s: %s]", wrong.Field, wrong.Description)
			}
		}
	}
	return line
}

func must[T any](value T, err error) T {
	if err != nil {
		fail(explain(err))
	}
	return value
}

func fail(text string) {
	fmt.Fprintln(os.Stderr, "main-job:", text)
	os.Exit(1)
}
