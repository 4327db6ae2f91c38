import Foundation

extension Pipeline {
    /// Makes a pipeline of a bundle and what runs its packages.
    ///
    /// - Throws: `ModditError` if the bundle lacks a part.
    package init(bundle: ModelBundle, runner: any PackageRunning, reducesMemory: Bool) throws(ModditError) {
        let (graphs, spec) = (try bundle.graphs(), bundle.manifest.spec)
        self.init(
            manifest: bundle.manifest, conditioning: try spec.conditioning.open(bundle, runner: runner),
            preparation: GraphPreparation(graphs, runner: runner),
            denoiser: try GraphDenoiser(graphs, spec: spec, runner: runner),
            encoder: try GraphEncoder(graphs, runner: runner),
            decoder: try GraphDecoder(graphs, spec: spec.vae, runner: runner), modelPath: bundle.folder.relativePath,
            reducesMemory: reducesMemory,
            versions: [
                "moddit": PictureMetadata.packageVersion,
                "system": ProcessInfo.processInfo.operatingSystemVersionString,
            ])
    }
}
