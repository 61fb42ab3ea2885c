package mainjob;

import static mainjob.Client.*;

import atelier.assets.v1.*;
import atelier.common.v1.*;
import atelier.conversions.v1.*;
import atelier.pipeline.v1.*;
import atelier.techfiles.v1.*;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashSet;

/** The main job, from a photograph to a tech pack: MainJob PHOTO PERSON PDF. */
public final class MainJob {
  public static void main(String[] args) throws Exception {
    run(() -> job(args[0], args[1], args[2]));
  }

  static void job(String photoPath, String personPath, String pdfPath) throws Exception {
    var toAssets = connect("ATELIER_ASSETS_ADDRESS", "127.0.0.1:50051");
    var toConversions = connect("ATELIER_CONVERSIONS_ADDRESS", "127.0.0.1:50052");
    var toPipeline = connect("ATELIER_PIPELINE_ADDRESS", "127.0.0.1:50053");
    var toTechfiles = connect("ATELIER_TECHFILES_ADDRESS", "127.0.0.1:50054");

    // A photograph as that of a product and of a garment to try on, and one of a person.
    var photo = upload(toAssets, photoPath, AssetKind.ASSET_KIND_PRODUCT);
    var cloth = upload(toAssets, photoPath, AssetKind.ASSET_KIND_CLOTH);
    var person = upload(toAssets, personPath, AssetKind.ASSET_KIND_USER);
    System.out.println("photograph " + photo.getId() + " " + photo.getState());

    // Its variants are made by themselves: thumb, small, large, avif.
    var pictures = AssetServiceGrpc.newBlockingV2Stub(toAssets);
    var variants = WatchAssetsRequest.newBuilder().addAssetIds(photo.getId());
    var ready = new HashSet<String>();
    try (var watch = new Watch<>(() -> pictures.watchAssets(variants.build()))) {
      while (ready.size() < 4) {
        var item = watch.next();
        variants.setCursor(item.getCursor().isEmpty() ? variants.getCursor() : item.getCursor());
        var v = item.getVariant();
        if (v.getState() == VariantState.VARIANT_STATE_READY && ready.add(v.getPreset())) {
          System.out.printf("variant %s %d %d%n", v.getPreset(), v.getWidth(), v.getHeight());
        }
      }
    }

    // A product goes through four phases. What a phase is not sure of, a person decides.
    var products = ProductServiceGrpc.newBlockingV2Stub(toPipeline);
    var reviews = ReviewServiceGrpc.newBlockingV2Stub(toPipeline);
    var named = ProductFacts.newBuilder().setName("Canvas field jacket");
    var facts = Facts.newBuilder().setProduct(named).build();
    var image = NewImage.newBuilder().setAssetId(photo.getId()).setView("front");
    var product = products.createProduct(CreateProductRequest.newBuilder().setRequestId(newId())
        .setFacts(facts).addImages(image).build()).getProduct();
    var changes = WatchProductRequest.newBuilder().setProductId(product.getId());
    try (var watch = new Watch<>(() -> products.watchProduct(changes.build()))) {
      while (product.getState() != ProductState.PRODUCT_STATE_COMPLETED) {
        var change = watch.next().getChange();
        changes.setCursor(change.getCursor().isEmpty() ? changes.getCursor() : change.getCursor());
        var phase = change.getPhase();
        if (change.hasPhase()) {
          System.out.println("phase " + phase.getNumber() + " " + phase.getState());
        }
        var review = change.getReview();
        if (review.getState() == ReviewState.REVIEW_STATE_OPEN) {
          reviews.submitReview(SubmitReviewRequest.newBuilder()
              .setRequestId(review.getId()) // one answer to each, however often it is seen
              .setDecision(ReviewDecision.REVIEW_DECISION_APPROVE)
              .setReviewId(review.getId()).build());
          System.out.println("review approved, phase " + review.getPhase());
        }
        product = change.hasProduct() ? change.getProduct() : product;
        if (product.getState() == ProductState.PRODUCT_STATE_ERROR) {
          throw new IllegalStateException(product.getErrorMessage());
        }
      }
    }
    System.out.println("product " + product.getId() + " " + product.getState());

    // Jobs that the call waits for.
    var tryOns = ConversionServiceGrpc.newBlockingV2Stub(toConversions);
    var tryOn = CreateConversionRequest.newBuilder().setRequestId(newId()).setWait(true)
        .setUserAssetId(person.getId()).setClothAssetId(cloth.getId()).build();
    var worn = finished(JobState.JOB_STATE_COMPLETED_VALUE, Conversion::getStateValue,
        () -> tryOns.createConversion(tryOn).getConversion());
    System.out.println("conversion " + worn.getId() + " " + worn.getState());

    var generations = GenerationServiceGrpc.newBlockingV2Stub(toConversions);
    var picture = CreateGenerationRequest.newBuilder().setRequestId(newId()).setWait(true)
        .setTask(GenerationTask.GENERATION_TASK_IMAGE).setPrompt("jacket in evening light")
        .addReferenceAssetIds(photo.getId()).build();
    var made = finished(JobState.JOB_STATE_COMPLETED_VALUE, Generation::getStateValue,
        () -> generations.createGeneration(picture).getGeneration());
    System.out.println("generation " + made.getId() + " " + made.getState());

    var packs = TechPackServiceGrpc.newBlockingV2Stub(toTechfiles);
    var front = PackRevision.newBuilder().setRevisionId("front-1").setAssetId(photo.getId())
        .setView(atelier.techfiles.v1.ViewType.VIEW_TYPE_FRONT); // common has one
    var pack = GenerateTechPackRequest.newBuilder().setRequestId(newId()).setWait(true)
        .setProductId(product.getId()).setFacts(facts).addRevisions(front).build();
    var run = finished(atelier.techfiles.v1.RunState.RUN_STATE_COMPLETED_VALUE, // assets has one
        TechPackRun::getStateValue, () -> packs.generateTechPack(pack).getRun());
    System.out.println("tech pack " + run.getId() + " " + run.getState());

    var wanted = GetExportRequest.newBuilder().setExportId(run.getExportId());
    var shown = packs.getExport(wanted.build()).getExport();
    try (var file = URI.create(shown.getFileUrl()).toURL().openStream()) {
      Files.write(Path.of(pdfPath), file.readAllBytes());
    }
    System.out.println("saved " + pdfPath + " " + shown.getSizeBytes());

    // What a refusal says.
    try {
      packs.getExport(wanted.setExportId("none").build());
    } catch (Exception error) {
      System.out.println("refused " + explain(error));
    }
  }
}
