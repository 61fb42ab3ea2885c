// The main job, from a photograph to a tech pack: main-job PHOTO PERSON PDF
package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/metadata"

	assets "mainjob/gen/atelier/assets/v1"
	common "mainjob/gen/atelier/common/v1"
	conversions "mainjob/gen/atelier/conversions/v1"
	pipeline "mainjob/gen/atelier/pipeline/v1"
	techfiles "mainjob/gen/atelier/techfiles/v1"
)

func main() {
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Minute)
	defer stop()
	bearer := "Bearer " + os.Getenv("ATELIER_TOKEN")
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", bearer)
	toAssets := connect("ATELIER_ASSETS_ADDRESS", "127.0.0.1:50051")
	toConversions := connect("ATELIER_CONVERSIONS_ADDRESS", "127.0.0.1:50052")
	toPipeline := connect("ATELIER_PIPELINE_ADDRESS", "127.0.0.1:50053")
	toTechfiles := connect("ATELIER_TECHFILES_ADDRESS", "127.0.0.1:50054")

	// A photograph as that of a product and of a garment to try on, and one of a person.
	photo := upload(ctx, toAssets, os.Args[1], assets.AssetKind_ASSET_KIND_PRODUCT)
	cloth := upload(ctx, toAssets, os.Args[1], assets.AssetKind_ASSET_KIND_CLOTH)
	person := upload(ctx, toAssets, os.Args[2], assets.AssetKind_ASSET_KIND_USER)
	fmt.Println("photograph", photo.Id, photo.State)

	// Its variants are made by themselves: thumb, small, large, avif.
	variants := &assets.WatchAssetsRequest{AssetIds: []string{photo.Id}}
	ready := map[string]bool{}
	for item := range watch(ctx, variants, assets.NewAssetServiceClient(toAssets).WatchAssets) {
		variants.Cursor = cmp.Or(item.Cursor, variants.Cursor)
		v := item.GetVariant()
		if v.GetState() == assets.VariantState_VARIANT_STATE_READY && !ready[v.Preset] {
			ready[v.Preset] = true
			fmt.Println("variant", v.Preset, v.Width, v.Height)
		}
		if len(ready) == 4 {
			break
		}
	}

	// A product goes through four phases. What a phase is not sure of, a person decides.
	products := pipeline.NewProductServiceClient(toPipeline)
	reviews := pipeline.NewReviewServiceClient(toPipeline)
	facts := &common.Facts{Product: &common.ProductFacts{Name: "Canvas field jacket"}}
	product := must(products.CreateProduct(ctx, &pipeline.CreateProductRequest{
		RequestId: uuid.NewString(), Facts: facts,
		Images: []*pipeline.NewImage{{AssetId: photo.Id, View: "front"}}})).Product
	changes := &pipeline.WatchProductRequest{ProductId: product.Id}
	for item := range watch(ctx, changes, products.WatchProduct) {
		changes.Cursor = cmp.Or(item.Change.Cursor, changes.Cursor)
		if phase := item.Change.GetPhase(); phase != nil {
			fmt.Println("phase", phase.Number, phase.State)
		}
		review := item.Change.GetReview()
		if review.GetState() == pipeline.ReviewState_REVIEW_STATE_OPEN {
			must(reviews.SubmitReview(ctx, &pipeline.SubmitReviewRequest{
				RequestId: review.Id, // one answer to each, however often it is seen
				ReviewId:  review.Id, Decision: pipeline.ReviewDecision_REVIEW_DECISION_APPROVE}))
			fmt.Println("review approved, phase", review.Phase)
		}
		product = cmp.Or(item.Change.GetProduct(), product)
		if product.State == pipeline.ProductState_PRODUCT_STATE_ERROR {
			fail(product.ErrorMessage)
		} else if product.State == pipeline.ProductState_PRODUCT_STATE_COMPLETED {
			break
		}
	}
	fmt.Println("product", product.Id, product.State)

	// Jobs that the call waits for.
	tryOns := conversions.NewConversionServiceClient(toConversions)
	tryOn := &conversions.CreateConversionRequest{RequestId: uuid.NewString(), Wait: true,
		UserAssetId: person.Id, ClothAssetId: cloth.Id}
	worn := finished(conversions.JobState_JOB_STATE_COMPLETED, func() *conversions.Conversion {
		return must(tryOns.CreateConversion(ctx, tryOn)).Conversion
	})
	fmt.Println("conversion", worn.Id, worn.State)

	generations := conversions.NewGenerationServiceClient(toConversions)
	picture := &conversions.CreateGenerationRequest{RequestId: uuid.NewString(), Wait: true,
		Task: conversions.GenerationTask_GENERATION_TASK_IMAGE, Prompt: "jacket in evening light",
		ReferenceAssetIds: []string{photo.Id}}
	made := finished(conversions.JobState_JOB_STATE_COMPLETED, func() *conversions.Generation {
		return must(generations.CreateGeneration(ctx, picture)).Generation
	})
	fmt.Println("generation", made.Id, made.State)

	packs := techfiles.NewTechPackServiceClient(toTechfiles)
	pack := &techfiles.GenerateTechPackRequest{RequestId: uuid.NewString(), Wait: true,
		ProductId: product.Id, Facts: facts, Revisions: []*techfiles.PackRevision{
			{RevisionId: "front-1", View: techfiles.ViewType_VIEW_TYPE_FRONT, AssetId: photo.Id}}}
	run := finished(techfiles.RunState_RUN_STATE_COMPLETED, func() *techfiles.TechPackRun {
		return must(packs.GenerateTechPack(ctx, pack)).Run
	})
	fmt.Println("tech pack", run.Id, run.State)

	shown := must(packs.GetExport(ctx, &techfiles.GetExportRequest{ExportId: run.ExportId})).Export
	download(shown.FileUrl, os.Args[3])
	fmt.Println("saved", os.Args[3], shown.SizeBytes)

	// What a refusal says.
	_, err := packs.GetExport(ctx, &techfiles.GetExportRequest{ExportId: "none"})
	fmt.Println("refused", explain(err))
}
