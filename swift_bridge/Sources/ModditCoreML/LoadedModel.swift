import Foundation
import ModditCore

#if canImport(CoreML)
import CoreML
#else
import CoreMLStub
#endif

/// One function of a package in memory.
///
/// Unchecked, because it only ever predicts with the model, which Core ML allows from several tasks at a time.
final class LoadedModel: @unchecked Sendable {
    private let model: MLModel

    private init(_ model: MLModel) {
        self.model = model
    }

    /// Compiles a package.
    ///
    /// - Returns: the compiled model, in a temporary folder.
    static func compile(_ package: URL) async throws -> URL {
        try await MLModel.compileModel(at: package)
    }

    /// Loads a function of a compiled model.
    static func load(_ compiled: URL, function: String, computeUnits: ComputeUnits) async throws -> LoadedModel {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = computeUnits.coreML
        configuration.functionName = function
        return LoadedModel(try await MLModel.load(contentsOf: compiled, configuration: configuration))
    }

    /// Runs the function, and gives the outputs of some names; numbers that are Core ML's are not copied.
    func predict(
        _ inputs: [String: any FeatureValue], outputs names: [String]
    ) async throws -> [String: any FeatureValue] {
        var features: [String: Any] = [:]
        for (name, value) in inputs { features[name] = MLFeatureValue(multiArray: try value.coreML) }
        let found = try await model.prediction(from: MLDictionaryFeatureProvider(dictionary: features))
        var outputs: [String: any FeatureValue] = [:]
        for name in names {
            outputs[name] = try found.featureValue(for: name)?.multiArrayValue.map { try CoreMLArray($0) }
        }
        return outputs
    }
}
