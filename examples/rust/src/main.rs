//! The main job, from a photograph to a tech pack: main-job PHOTO PERSON PDF
mod client;

use std::{collections::HashSet, env, fs::File, io};

use client::{Failure, Watch, api::*, call, check, connect, explain, finished, new_id, upload};
use product_change::Item;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let paths: Vec<String> = env::args().collect();
    let to_assets = connect("ATELIER_ASSETS_ADDRESS", "127.0.0.1:50051")?;
    let to_conversions = connect("ATELIER_CONVERSIONS_ADDRESS", "127.0.0.1:50052")?;
    let to_pipeline = connect("ATELIER_PIPELINE_ADDRESS", "127.0.0.1:50053")?;
    let to_techfiles = connect("ATELIER_TECHFILES_ADDRESS", "127.0.0.1:50054")?;

    // A photograph as that of a product and of a garment to try on, and one of a person.
    let photo = upload(&to_assets, &paths[1], AssetKind::Product).await?;
    let cloth = upload(&to_assets, &paths[1], AssetKind::Cloth).await?;
    let person = upload(&to_assets, &paths[2], AssetKind::User).await?;
    println!("photograph {} {}", photo.id, photo.state().as_str_name());

    // Its variants are made by themselves: thumb, small, large, avif.
    let pictures = asset_service_client::AssetServiceClient::new(to_assets);
    let mut variants = Watch::new(async |cursor| {
        let ask = WatchAssetsRequest { asset_ids: vec![photo.id.clone()], cursor };
        pictures.clone().watch_assets(ask).await
    });
    let mut ready = HashSet::new();
    while ready.len() < 4 {
        let WatchAssetsResponse { item, cursor } = variants.next().await?;
        variants.keep(cursor);
        if let Some(watch_assets_response::Item::Variant(v)) = item
            && v.state() == VariantState::Ready
            && ready.insert(v.preset.clone())
        {
            println!("variant {} {} {}", v.preset, v.width, v.height);
        }
    }

    // A product goes through four phases. What a phase is not sure of, a person decides.
    let products = product_service_client::ProductServiceClient::new(to_pipeline.clone());
    let reviews = review_service_client::ReviewServiceClient::new(to_pipeline);
    let named = ProductFacts { name: "Canvas field jacket".into(), ..Default::default() };
    let facts = Some(Facts { product: Some(named), ..Default::default() });
    let (asset_id, view_type) = (photo.id.clone(), ViewType::Front.into());
    let image = NewImage { asset_id, view_type, ..Default::default() };
    let mut ask = CreateProductRequest { request_id: new_id(), ..Default::default() };
    (ask.facts, ask.images) = (facts.clone(), vec![image]);
    let mut product = call!(products.create_product(ask)).await?.product.unwrap_or_default();
    let id = product.id.clone();
    let mut changes = Watch::new(async |cursor| {
        let request = WatchProductRequest { product_id: id.clone(), cursor, ..Default::default() };
        products.clone().watch_product(request).await
    });
    while product.state() != ProductState::Completed {
        let ProductChange { item, cursor } = changes.next().await?.change.unwrap_or_default();
        changes.keep(cursor);
        match item {
            Some(Item::Phase(p)) => println!("phase {} {}", p.number, p.state().as_str_name()),
            Some(Item::Review(review)) if review.state() == ReviewState::Open => {
                let answer = SubmitReviewRequest {
                    request_id: review.id.clone(), // one answer to each, however often it is seen
                    review_id: review.id,
                    decision: ReviewDecision::Approve.into(),
                    ..Default::default()
                };
                call!(reviews.submit_review(answer)).await?;
                println!("review approved, phase {}", review.phase);
            }
            Some(Item::Product(now)) => product = now,
            _ => {}
        }
        check(product.state() != ProductState::Error, &product.error_message)?;
    }
    println!("product {} {}", product.id, product.state().as_str_name());

    // Jobs that the call waits for.
    let try_ons = conversion_service_client::ConversionServiceClient::new(to_conversions.clone());
    let mut ask = CreateConversionRequest { wait: true, ..Default::default() };
    (ask.request_id, ask.user_asset_id, ask.cloth_asset_id) = (new_id(), person.id, cloth.id);
    let worn = finished(JobState::Completed, Conversion::state, async || {
        Ok(call!(try_ons.create_conversion(ask)).await?.conversion.unwrap_or_default())
    })
    .await?;
    println!("conversion {} {}", worn.id, worn.state().as_str_name());

    let generations = generation_service_client::GenerationServiceClient::new(to_conversions);
    let mut ask = CreateGenerationRequest { wait: true, ..Default::default() };
    (ask.request_id, ask.reference_asset_ids) = (new_id(), vec![photo.id.clone()]);
    (ask.task, ask.prompt) = (GenerationTask::Image.into(), "jacket in evening light".into());
    let made = finished(JobState::Completed, Generation::state, async || {
        Ok(call!(generations.create_generation(ask)).await?.generation.unwrap_or_default())
    })
    .await?;
    println!("generation {} {}", made.id, made.state().as_str_name());

    let packs = tech_pack_service_client::TechPackServiceClient::new(to_techfiles);
    let mut front = PackRevision { view: view_type, asset_id: photo.id, ..Default::default() };
    front.revision_id = "front-1".into();
    let mut ask = GenerateTechPackRequest { wait: true, ..Default::default() };
    (ask.request_id, ask.product_id) = (new_id(), product.id);
    (ask.facts, ask.revisions) = (facts, vec![front]);
    let run = finished(RunState::Completed, TechPackRun::state, async || {
        Ok(call!(packs.generate_tech_pack(ask)).await?.run.unwrap_or_default())
    })
    .await?;
    println!("tech pack {} {}", run.id, run.state().as_str_name());

    let ask = GetExportRequest { export_id: run.export_id, ..Default::default() };
    let shown = call!(packs.get_export(ask)).await?.export.unwrap_or_default();
    let mut file = ureq::get(&shown.file_url).call()?;
    io::copy(&mut file.body_mut().as_reader(), &mut File::create(&paths[3])?)?;
    println!("saved {} {}", paths[3], shown.size_bytes);

    // What a refusal says.
    let none = GetExportRequest { export_id: "none".into(), ..Default::default() };
    println!("refused {}", explain(&call!(packs.get_export(none)).await.unwrap_err()));
    Ok(())
}
