// Declarations of Core ML that ModditCoreML uses, as Apple's documentation gives them: only to type-check it on Linux.
// Nothing here computes; on Apple's systems this module is empty.

#if !canImport(CoreML)
import Foundation

/// Thrown by everything here.
public struct NoCoreML: Error {}

// Source: developer.apple.com/documentation/coreml/mlcomputeunits
public enum MLComputeUnits: Int {
    case cpuOnly = 0
    case cpuAndGPU = 1
    case all = 2
    case cpuAndNeuralEngine = 3
}

// Source: developer.apple.com/documentation/coreml/mlmodelconfiguration
open class MLModelConfiguration {
    public var computeUnits: MLComputeUnits = .all
    public var functionName: String?

    public init() {}
}

// Source: developer.apple.com/documentation/coreml/mlmodel
open class MLModel {
    public class func compileModel(at modelURL: URL) async throws -> URL { throw NoCoreML() }

    public class func load(
        contentsOf url: URL, configuration: MLModelConfiguration = MLModelConfiguration()
    ) async throws -> MLModel { throw NoCoreML() }

    open func prediction(from input: any MLFeatureProvider) throws -> any MLFeatureProvider { throw NoCoreML() }

    open func prediction(from input: any MLFeatureProvider) async throws -> any MLFeatureProvider { throw NoCoreML() }
}

// Source: developer.apple.com/documentation/coreml/mlcomputeplan-1w21n
/// Where a model's operations would run.
public class MLComputePlan {
    public struct DeviceUsage: Sendable {
        public let preferred: MLComputeDevice
        public let supported: [MLComputeDevice]
    }

    public let modelStructure: MLModelStructure

    private init(_ modelStructure: MLModelStructure) {
        self.modelStructure = modelStructure
    }

    public static func load(
        contentsOf url: URL, configuration: MLModelConfiguration
    ) async throws -> MLComputePlan { throw NoCoreML() }

    public func deviceUsage(for operation: MLModelStructure.Program.Operation) -> DeviceUsage? { nil }
}

// Source: developer.apple.com/documentation/coreml/mlmodelstructure-swift.enum
public enum MLModelStructure: Sendable {
    case program(Program)
    case unsupported

    /// Functions by name, each a block of operations.
    public struct Program: Sendable {
        public struct Operation: Sendable {
            public let operatorName: String
        }

        public struct Block: Sendable {
            public let operations: [Operation]
        }

        public struct Function: Sendable {
            public let block: Block
        }

        public let functions: [String: Function]
    }
}

// Source: developer.apple.com/documentation/coreml/mlcomputedevice
public enum MLComputeDevice: Sendable {
    case cpu(MLCPUComputeDevice)
    case gpu(MLGPUComputeDevice)
    case neuralEngine(MLNeuralEngineComputeDevice)
}

// Source: developer.apple.com/documentation/coreml/mlcpucomputedevice and its siblings
/// The CPU.
public final class MLCPUComputeDevice: Sendable {}
/// A GPU.
public final class MLGPUComputeDevice: Sendable {}
/// The Neural Engine.
public final class MLNeuralEngineComputeDevice: Sendable {}

// Source: developer.apple.com/documentation/coreml/mlfeatureprovider
/// Inputs or outputs of a model.
public protocol MLFeatureProvider {
    var featureNames: Set<String> { get }
    func featureValue(for featureName: String) -> MLFeatureValue?
}

// Source: developer.apple.com/documentation/coreml/mldictionaryfeatureprovider
open class MLDictionaryFeatureProvider: MLFeatureProvider {
    public init(dictionary: [String: Any]) throws { throw NoCoreML() }

    public var featureNames: Set<String> { [] }

    public func featureValue(for featureName: String) -> MLFeatureValue? { nil }
}

// Source: developer.apple.com/documentation/coreml/mlfeaturevalue
open class MLFeatureValue {
    public init(multiArray value: MLMultiArray) {}

    public var multiArrayValue: MLMultiArray? { nil }
}

// Source: developer.apple.com/documentation/coreml/mlmultiarraydatatype
public enum MLMultiArrayDataType: Int {
    case double = 65600
    case float32 = 65568
    case float16 = 65552
    case int32 = 131104
}

// Source: developer.apple.com/documentation/coreml/mlmultiarray
open class MLMultiArray {
    public init(shape: [NSNumber], dataType: MLMultiArrayDataType) throws { throw NoCoreML() }

    public var dataType: MLMultiArrayDataType { .float32 }
    public var shape: [NSNumber] { [] }
    public var strides: [NSNumber] { [] }

    public func withUnsafeBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R {
        try body(UnsafeRawBufferPointer(start: nil, count: 0))
    }

    public func withUnsafeMutableBytes<R>(
        _ body: (UnsafeMutableRawBufferPointer, [Int]) throws -> R
    ) rethrows -> R {
        try body(UnsafeMutableRawBufferPointer(start: nil, count: 0), [])
    }
}
#endif
