// The main job, from a photograph to a tech pack: node dist/main.js PHOTO PERSON PDF
import { randomUUID } from "node:crypto";
import { writeFile } from "node:fs/promises";

import { createClient } from "@connectrpc/connect";

import { connect, explain, finished, upload, watch } from "./client.js";
import { AssetKind, AssetService, AssetState } from "./gen/atelier/assets/v1/asset_pb.js";
import { VariantState } from "./gen/atelier/assets/v1/asset_pb.js";
import { ConversionService } from "./gen/atelier/conversions/v1/conversion_pb.js";
import { GenerationService, GenerationTask } from "./gen/atelier/conversions/v1/generation_pb.js";
import { JobState } from "./gen/atelier/conversions/v1/job_pb.js";
import { PhaseState } from "./gen/atelier/pipeline/v1/phase_pb.js";
import { ProductService, ProductState } from "./gen/atelier/pipeline/v1/product_pb.js";
import { ReviewDecision, ReviewService, ReviewState } from "./gen/atelier/pipeline/v1/review_pb.js";
import { ViewType } from "./gen/atelier/techfiles/v1/tech_file_pb.js";
import { RunState, TechPackService } from "./gen/atelier/techfiles/v1/tech_pack_pb.js";

async function job(photoPath: string, personPath: string, pdfPath: string): Promise<void> {
  const toAssets = connect("ATELIER_ASSETS_ADDRESS", "127.0.0.1:50051");
  const toConversions = connect("ATELIER_CONVERSIONS_ADDRESS", "127.0.0.1:50052");
  const toPipeline = connect("ATELIER_PIPELINE_ADDRESS", "127.0.0.1:50053");
  const toTechfiles = connect("ATELIER_TECHFILES_ADDRESS", "127.0.0.1:50054");

  // A photograph as that of a product and of a garment to try on, and one of a person.
  const photo = await upload(toAssets, photoPath, AssetKind.PRODUCT);
  const cloth = await upload(toAssets, photoPath, AssetKind.CLOTH);
  const person = await upload(toAssets, personPath, AssetKind.USER);
  console.log("photograph", photo.id, AssetState[photo.state]);

  // Its variants are made by themselves: thumb, small, large, avif.
  const pictures = createClient(AssetService, toAssets);
  const variants = { assetIds: [photo.id], cursor: "" };
  const ready = new Set<string>();
  for await (const { item, cursor } of watch(variants, pictures.watchAssets)) {
    variants.cursor = cursor || variants.cursor;
    const v = item.case === "variant" ? item.value : undefined;
    if (v?.state === VariantState.READY && !ready.has(v.preset)) {
      ready.add(v.preset);
      console.log("variant", v.preset, v.width, v.height);
    }
    if (ready.size === 4) break;
  }

  // A product goes through four phases. What a phase is not sure of, a person decides.
  const products = createClient(ProductService, toPipeline);
  const reviews = createClient(ReviewService, toPipeline);
  const facts = { product: { name: "Canvas field jacket" } };
  const images = [{ assetId: photo.id, view: "front" }];
  const created = await products.createProduct({ requestId: randomUUID(), facts, images });
  let product = created.product!;
  const changes = { productId: product.id, cursor: "" };
  for await (const { change } of watch(changes, products.watchProduct)) {
    changes.cursor = change!.cursor || changes.cursor;
    const item = change!.item;
    if (item.case === "phase") {
      console.log("phase", item.value.number, PhaseState[item.value.state]);
    }
    if (item.case === "review" && item.value.state === ReviewState.OPEN) {
      await reviews.submitReview({
        requestId: item.value.id, // one answer to each, however often it is seen
        reviewId: item.value.id,
        decision: ReviewDecision.APPROVE,
      });
      console.log("review approved, phase", item.value.phase);
    }
    if (item.case === "product") product = item.value;
    if (product.state === ProductState.ERROR) throw new Error(product.errorMessage);
    if (product.state === ProductState.COMPLETED) break;
  }
  console.log("product", product.id, ProductState[product.state]);

  // Jobs that the call waits for.
  const tryOns = createClient(ConversionService, toConversions);
  const pair = { userAssetId: person.id, clothAssetId: cloth.id };
  const tryOn = { requestId: randomUUID(), wait: true, ...pair };
  const worn = await finished(JobState.COMPLETED, async () => {
    return (await tryOns.createConversion(tryOn)).conversion!;
  });
  console.log("conversion", worn.id, JobState[worn.state]);

  const generations = createClient(GenerationService, toConversions);
  const asked = { task: GenerationTask.IMAGE, prompt: "jacket in evening light" };
  const picture = { requestId: randomUUID(), wait: true, ...asked, referenceAssetIds: [photo.id] };
  const made = await finished(JobState.COMPLETED, async () => {
    return (await generations.createGeneration(picture)).generation!;
  });
  console.log("generation", made.id, JobState[made.state]);

  const packs = createClient(TechPackService, toTechfiles);
  const revisions = [{ revisionId: "front-1", view: ViewType.FRONT, assetId: photo.id }];
  const pack = { requestId: randomUUID(), wait: true, productId: product.id, facts, revisions };
  const run = await finished(RunState.COMPLETED, async () => {
    return (await packs.generateTechPack(pack)).run!;
  });
  console.log("tech pack", run.id, RunState[run.state]);

  const { export: shown } = await packs.getExport({ exportId: run.exportId });
  const file = await fetch(shown!.fileUrl);
  if (!file.ok) throw new Error(file.statusText);
  await writeFile(pdfPath, Buffer.from(await file.arrayBuffer()));
  console.log("saved", pdfPath, Number(shown!.sizeBytes));

  // What a refusal says.
  await packs
    .getExport({ exportId: "none" })
    .catch((error) => console.log("refused", explain(error)));
}

const [photo, person, pdf] = process.argv.slice(2);
job(photo, person, pdf).then(
  () => process.exit(0), // connections would stay open for more calls
  (error) => {
    console.error("main-job:", explain(error));
    process.exit(1);
  },
);
